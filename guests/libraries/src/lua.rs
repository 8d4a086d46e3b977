//! Lua 5.4: an interpreter's program (lua.h, lauxlib.h, lualib.h).
#![allow(unsafe_code)] // calls of C functions

use crate::library::Library;
use std::ffi::{c_char, c_int, c_void};
use std::ptr::{self, NonNull};
use suite_runner::{Unavailable, Unit};

/// `lua_State`.
type State = NonNull<c_void>;

/// Returns one integer.
const PROGRAM: &std::ffi::CStr = c"
local limit = 3000
local composite, primes = {}, {}
for n = 2, limit do
    if not composite[n] then
        primes[#primes + 1] = n
        for m = n * n, limit, n do composite[m] = true end
    end
end

local parts = {}
for i = 1, 300 do parts[i] = string.format('%d:%s', primes[i], ('x'):rep(i % 7)) end
local text = table.concat(parts, ',')
local digits = 0
for number in text:gmatch('%d+') do digits = digits + #number end

local state, list = 1, {}
for i = 1, 500 do
    state = state * 6364136223846793005 + 1442695040888963407
    list[i] = state >> 40
end
table.sort(list, function(a, b) return a > b end)
local sum = 0
for _, value in ipairs(list) do sum = sum * 31 + value end
return sum ~ #primes << 48 ~ #text << 32 ~ digits
";

/// What it returns.
pub(crate) const RESULT: u64 = 0xcee7_23fc_fdf9_6abc;

const OK: c_int = 0;

struct Lua {
    pushvalue: unsafe extern "C" fn(State, c_int),
    pcall: unsafe extern "C" fn(State, c_int, c_int, c_int, isize, *const c_void) -> c_int,
    tointeger: unsafe extern "C" fn(State, c_int, *mut c_int) -> i64,
    settop: unsafe extern "C" fn(State, c_int),
    close: unsafe extern "C" fn(State),
    state: State,
}

impl Lua {
    /// A state whose stack holds the program as a function, at 1.
    fn new() -> Result<Self, Unavailable> {
        let library = Library::open(c"liblua5.4.so.0")?;
        type New = unsafe extern "C" fn() -> Option<State>;
        type OpenLibs = unsafe extern "C" fn(State);
        type Load = unsafe extern "C" fn(State, *const c_char) -> c_int;
        // SAFETY: types as the headers declare them.
        let (new, openlibs, load): (New, OpenLibs, Load) = unsafe {
            (
                library.function(c"luaL_newstate")?,
                library.function(c"luaL_openlibs")?,
                library.function(c"luaL_loadstring")?,
            )
        };
        // SAFETY: likewise; `luaL_newstate` has no requirements.
        let lua = unsafe {
            Self {
                pushvalue: library.function(c"lua_pushvalue")?,
                pcall: library.function(c"lua_pcallk")?,
                tointeger: library.function(c"lua_tointegerx")?,
                settop: library.function(c"lua_settop")?,
                close: library.function(c"lua_close")?,
                state: new().ok_or_else(|| Unavailable("luaL_newstate: no memory".to_owned()))?,
            }
        };
        // SAFETY: a state just made, and a C string.
        let loaded = unsafe {
            openlibs(lua.state);
            load(lua.state, PROGRAM.as_ptr())
        };
        if loaded == OK { Ok(lua) } else { Err(Unavailable(format!("luaL_loadstring: error {loaded}"))) }
    }

    /// Runs the program.
    fn run(&mut self) -> Option<i64> {
        // SAFETY: the stack holds the function, and has room for a copy and its result (LUA_MINSTACK is 20); afterwards it
        // is as before. An error of the program is a result of `lua_pcallk`: nothing is thrown through this frame.
        unsafe {
            (self.pushvalue)(self.state, 1);
            let called = (self.pcall)(self.state, 0, 1, 0, 0, ptr::null());
            let mut is_integer = 0;
            let value = (self.tointeger)(self.state, -1, &raw mut is_integer);
            (self.settop)(self.state, 1);
            (called == OK && is_integer == 1).then_some(value)
        }
    }
}

impl Drop for Lua {
    fn drop(&mut self) {
        // SAFETY: our own state, not used afterwards.
        unsafe { (self.close)(self.state) };
    }
}

pub(crate) fn program() -> Result<Unit, Unavailable> {
    let mut lua = Lua::new()?;
    Ok(Box::new(move || lua.run().map_or(u64::MAX, |value| value as u64)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use suite_runner::lcg;

    /// The same program in Rust.
    #[test]
    fn the_result_is_the_algorithm_s() {
        let prime = |n: &usize| (2..*n).take_while(|d| d * d <= *n).all(|d| !n.is_multiple_of(d));
        let primes: Vec<usize> = (2..=3000).filter(prime).collect();
        let part = |i: usize| format!("{}:{}", primes[i - 1], "x".repeat(i % 7));
        let text = (1..=300).map(part).collect::<Vec<_>>().join(",");
        let digits = text.bytes().filter(u8::is_ascii_digit).count() as u64;
        let mut state = 1;
        let mut list: Vec<u64> = (0..500).map(|_| lcg(&mut state) >> 40).collect();
        list.sort();
        let sum = list.iter().rev().fold(0u64, |sum, value| sum.wrapping_mul(31).wrapping_add(*value));
        assert_eq!(RESULT, sum ^ (primes.len() as u64) << 48 ^ (text.len() as u64) << 32 ^ digits);
    }
}
