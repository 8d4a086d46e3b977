//! SQLite: a table with an index in a database in memory (sqlite3.h).
#![allow(unsafe_code)] // calls of C functions

use crate::library::Library;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use suite_runner::{Unavailable, Unit};

const ROWS: i64 = 200;
const KEYS: i64 = 23;

/// Fold of all that the queries return.
pub(crate) const FOLD: u64 = 0x0f18_b579_b871_cec9;

const OK: c_int = 0;
const ROW: c_int = 100;
const DONE: c_int = 101;

/// `sqlite3` or `sqlite3_stmt`.
type Handle = *mut c_void;

#[derive(Clone, Copy)]
struct Functions {
    exec: unsafe extern "C" fn(Handle, *const c_char, *const c_void, *const c_void, *const c_void) -> c_int,
    prepare: unsafe extern "C" fn(Handle, *const c_char, c_int, *mut Handle, *mut *const c_char) -> c_int,
    bind: unsafe extern "C" fn(Handle, c_int, i64) -> c_int,
    step: unsafe extern "C" fn(Handle) -> c_int,
    column: unsafe extern "C" fn(Handle, c_int) -> i64,
    reset: unsafe extern "C" fn(Handle) -> c_int,
    finalize: unsafe extern "C" fn(Handle) -> c_int,
    close: unsafe extern "C" fn(Handle) -> c_int,
}

/// An open database.
struct Database {
    functions: Functions,
    handle: Handle,
}

impl Database {
    fn new() -> Result<Self, Unavailable> {
        let library = Library::open(c"libsqlite3.so.0")?;
        // SAFETY: types as sqlite3.h declares them.
        let (open, functions) = unsafe {
            let open: unsafe extern "C" fn(*const c_char, *mut Handle) -> c_int =
                library.function(c"sqlite3_open")?;
            let functions = Functions {
                exec: library.function(c"sqlite3_exec")?,
                prepare: library.function(c"sqlite3_prepare_v2")?,
                bind: library.function(c"sqlite3_bind_int64")?,
                step: library.function(c"sqlite3_step")?,
                column: library.function(c"sqlite3_column_int64")?,
                reset: library.function(c"sqlite3_reset")?,
                finalize: library.function(c"sqlite3_finalize")?,
                close: library.function(c"sqlite3_close")?,
            };
            (open, functions)
        };
        let mut handle = ptr::null_mut();
        // SAFETY: a C string, and a place for the handle, which is to be closed even if opening failed.
        let opened = unsafe { open(c":memory:".as_ptr(), &raw mut handle) };
        let database = Self { functions, handle };
        if opened == OK { Ok(database) } else { Err(Unavailable(format!("sqlite3_open: error {opened}"))) }
    }

    /// Executes statements that return nothing.
    fn execute(&self, sql: &CStr) -> Option<()> {
        let none = ptr::null();
        // SAFETY: an open database and a C string; no callback, no place for a message.
        let done = unsafe { (self.functions.exec)(self.handle, sql.as_ptr(), none, none, none) };
        (done == OK).then_some(())
    }

    /// Prepares a statement and hands it to `work`.
    fn with<T>(&self, sql: &CStr, work: impl FnOnce(&Statement) -> Option<T>) -> Option<T> {
        let mut handle = ptr::null_mut();
        // SAFETY: an open database, a C string (-1: to its end), and a place for the handle.
        let done = unsafe {
            (self.functions.prepare)(self.handle, sql.as_ptr(), -1, &raw mut handle, ptr::null_mut())
        };
        // From here on it is finalized, which is right for a null pointer too.
        let statement = Statement { functions: self.functions, handle };
        if done == OK { work(&statement) } else { None }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // SAFETY: our own handle, whose statements are gone: each borrows the database.
        unsafe { (self.functions.close)(self.handle) };
    }
}

struct Statement {
    functions: Functions,
    handle: Handle,
}

impl Statement {
    /// Executes it with these parameters; `row` gets a function for each row of the result that tells its columns.
    fn run(&self, parameters: &[i64], mut row: impl FnMut(&dyn Fn(c_int) -> i64)) -> Option<()> {
        for (number, value) in (1..).zip(parameters) {
            // SAFETY: a prepared statement that is not being executed.
            if unsafe { (self.functions.bind)(self.handle, number, *value) } != OK {
                return None;
            }
        }
        let end = loop {
            // SAFETY: a prepared statement.
            match unsafe { (self.functions.step)(self.handle) } {
                // SAFETY: a column of the current row; one that does not exist reads as 0.
                ROW => row(&|column| unsafe { (self.functions.column)(self.handle, column) }),
                end => break end,
            }
        };
        // SAFETY: as above.
        (unsafe { (self.functions.reset)(self.handle) } == OK && end == DONE).then_some(())
    }
}

impl Drop for Statement {
    fn drop(&mut self) {
        // SAFETY: our own handle, not used afterwards.
        unsafe { (self.functions.finalize)(self.handle) };
    }
}

pub(crate) fn rows() -> Result<Unit, Unavailable> {
    let database = Database::new()?;
    let schema = c"CREATE TABLE t (id INTEGER PRIMARY KEY, k INTEGER, s TEXT); CREATE INDEX by_k ON t (k)";
    let made = database.execute(schema);
    made.ok_or_else(|| Unavailable("SQLite makes no table".to_owned()))?;
    Ok(Box::new(move || unit(&database).unwrap_or(u64::MAX)))
}

/// Fills the table and empties it again.
fn unit(database: &Database) -> Option<u64> {
    let mut sum = 0u64;
    database.execute(c"BEGIN")?;
    database.with(c"INSERT INTO t VALUES (?1, ?2, printf('%x', ?2 * ?1 * 7919))", |insert| {
        (1..=ROWS).try_for_each(|id| insert.run(&[id, id * id % KEYS], |_| {}))
    })?;
    database.execute(c"COMMIT")?;
    let mut fold = |value: i64| sum = sum.rotate_left(5) ^ value as u64;
    // By the index, then by the primary key.
    database.with(c"SELECT sum(id), sum(length(s)) FROM t WHERE k = ?1", |select| {
        (0..KEYS).try_for_each(|key| select.run(&[key], |column| (0..2).for_each(|n| fold(column(n)))))
    })?;
    database.execute(c"UPDATE t SET k = k + 100 WHERE id % 3 = 0")?;
    database.with(c"SELECT k, count(*) FROM t GROUP BY k ORDER BY k DESC", |select| {
        select.run(&[], |column| (0..2).for_each(|n| fold(column(n))))
    })?;
    database.with(c"SELECT id FROM t WHERE s > '8' ORDER BY s, id LIMIT ?1", |select| {
        select.run(&[20], |column| fold(column(0)))
    })?;
    database.execute(c"DELETE FROM t")?;
    Some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// The same in Rust.
    #[test]
    fn the_queries_return_what_they_ask_for() {
        let mut rows: Vec<(i64, i64, String)> = (1..=ROWS)
            .map(|id| (id, id * id % KEYS, format!("{:x}", id * (id * id % KEYS) * 7919)))
            .collect();
        let mut sum = 0u64;
        let mut fold = |value: i64| sum = sum.rotate_left(5) ^ value as u64;
        for key in 0..KEYS {
            let of = || rows.iter().filter(|row| row.1 == key);
            // No rows: the sum is NULL, which reads as 0.
            fold(of().map(|row| row.0).sum());
            fold(of().map(|row| row.2.len() as i64).sum());
        }
        rows.iter_mut().filter(|row| row.0 % 3 == 0).for_each(|row| row.1 += 100);
        let mut groups = BTreeMap::new();
        rows.iter().for_each(|row| *groups.entry(row.1).or_insert(0) += 1);
        for (key, count) in groups.into_iter().rev() {
            fold(key);
            fold(count);
        }
        let mut high: Vec<_> = rows.iter().filter(|row| row.2.as_str() > "8").collect();
        high.sort_by(|a, b| (&a.2, a.0).cmp(&(&b.2, b.0)));
        assert!(high.len() > 20);
        high.iter().take(20).for_each(|row| fold(row.0));
        assert_eq!(FOLD, sum);
    }
}
