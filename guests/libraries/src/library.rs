//! Shared libraries, opened while the program runs.
#![allow(unsafe_code)] // dlopen, dlsym, and pointers that become functions

use std::ffi::{CStr, c_void};
use std::ptr::NonNull;
use suite_runner::Unavailable;

/// An open library. It stays open to the end of the program, so its functions live for ever.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Library(NonNull<c_void>);

impl Library {
    /// Opens the library of that soname where the loader finds it.
    pub(crate) fn open(soname: &CStr) -> Result<Self, Unavailable> {
        // SAFETY: a C string. The constructors of the libraries that this program names do not depend on its state.
        NonNull::new(unsafe { libc::dlopen(soname.as_ptr(), libc::RTLD_NOW) }).map(Self).ok_or_else(reason)
    }

    /// The function `name`, of type `F`.
    ///
    /// # Safety
    /// `F` is a type `extern "C" fn` that the library's header declares for it.
    pub(crate) unsafe fn function<F: Copy>(self, name: &CStr) -> Result<F, Unavailable> {
        const { assert!(size_of::<F>() == size_of::<*mut c_void>(), "F is a pointer to a function") };
        // SAFETY: an open library, and a C string.
        let address =
            NonNull::new(unsafe { libc::dlsym(self.0.as_ptr(), name.as_ptr()) }).ok_or_else(reason)?;
        // SAFETY: sizes are equal, and by the caller's promise the address is that of a function of this type.
        Ok(unsafe { std::mem::transmute_copy(&address) })
    }
}

/// What the loader has to say.
fn reason() -> Unavailable {
    // SAFETY: the text is this thread's until its next call of the loader; it is copied before.
    let text = unsafe {
        let text = libc::dlerror();
        (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
    };
    Unavailable(text.unwrap_or_else(|| "the loader gives no reason".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_named() {
        let Err(Unavailable(reason)) = Library::open(c"libnothing.so.0") else { panic!("it is there") };
        assert!(reason.contains("libnothing.so.0"), "{reason}");
        let c = Library::open(c"libc.so.6").unwrap();
        // SAFETY: getpid takes nothing and returns an int.
        let getpid: unsafe extern "C" fn() -> i32 = unsafe { c.function(c"getpid") }.unwrap();
        // SAFETY: as declared.
        assert_eq!(unsafe { getpid() }, std::process::id() as i32);
        // SAFETY: it is not called.
        let nothing = unsafe { c.function::<unsafe extern "C" fn()>(c"no_such_function") };
        assert!(nothing.unwrap_err().0.contains("no_such_function"));
    }
}
