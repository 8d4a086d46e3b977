//! The folder of one flavour: files, manifest, lock.

use super::FetchError;
use super::modules::Module;
use sha2::{Digest, Sha256};
use std::env;
use std::fs::{self, File, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

pub(super) const KERNEL: &str = "vmlinuz";
pub(super) const BUSYBOX: &str = "busybox";
pub(super) const INITRD: &str = "initrd.img";
const MANIFEST: &str = "manifest";
const LOCK: &str = "lock";

/// First line of a manifest; another number is another layout.
const HEADER: &str = "gearshift debian guest 1";

/// What the cache holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Manifest {
    pub(super) version: String,
    kernel: String,
    busybox: String,
    /// File and sum of each module, in the order they load: without its last lines, a manifest is that of an entry with
    /// fewer modules, which lacks the ones that need the others.
    modules: Vec<(String, String)>,
}

impl Manifest {
    pub(super) fn of(version: &str, kernel: &[u8], busybox: &[u8], modules: &[Module]) -> Self {
        let modules = modules.iter().map(|m| (m.file_name(), digest(&m.bytes))).collect();
        Self { version: version.to_owned(), kernel: digest(kernel), busybox: digest(busybox), modules }
    }

    /// Files of the modules, in the order they load.
    pub(super) fn modules(&self) -> impl Iterator<Item = &str> {
        self.modules.iter().map(|(file, _)| file.as_str())
    }

    fn to_text(&self) -> String {
        let mut text = format!(
            "{HEADER}\nversion {}\nsha256 {KERNEL} {}\nsha256 {BUSYBOX} {}\n",
            self.version, self.kernel, self.busybox
        );
        for (file, sum) in &self.modules {
            text += &format!("sha256 {file} {sum}\n");
        }
        text
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.strip_suffix('\n')?.split('\n');
        if lines.next()? != HEADER {
            return None;
        }
        let version = lines.next()?.strip_prefix("version ")?.to_owned();
        let mut sum = |name: &str| {
            let rest = lines.next()?.strip_prefix("sha256 ")?.strip_prefix(name)?;
            Some(rest.strip_prefix(' ')?.to_owned())
        };
        let (kernel, busybox) = (sum(KERNEL)?, sum(BUSYBOX)?);
        let module = |line: &str| {
            let (file, sum) = line.strip_prefix("sha256 ")?.split_once(' ')?;
            // A name from a file must not lead out of the folder.
            let plain = file.ends_with(Module::SUFFIX) && !file.contains('/');
            plain.then(|| (file.to_owned(), sum.to_owned()))
        };
        Some(Self { version, kernel, busybox, modules: lines.map(module).collect::<Option<_>>()? })
    }
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One flavour's folder.
#[derive(Debug)]
pub(super) struct Cache {
    folder: PathBuf,
}

impl Cache {
    pub(super) fn open(flavour: &str) -> Result<Self, FetchError> {
        let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        // A relative XDG_CACHE_HOME is to be ignored (XDG Base Directory Specification).
        let base = absolute("GEARSHIFT_CACHE")
            .or_else(|| absolute("XDG_CACHE_HOME").map(|path| path.join("gearshift")))
            .or_else(|| absolute("HOME").map(|path| path.join(".cache/gearshift")))
            .ok_or(FetchError::NoCacheFolder)?;
        Ok(Self::at(base.join("debian").join(flavour)))
    }

    fn at(folder: PathBuf) -> Self {
        Self { folder }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub(super) fn create(&self) -> Result<(), FetchError> {
        fs::create_dir_all(&self.folder).map_err(|source| self.error(&self.folder, source))
    }

    /// Held until the file is dropped; waits for another process that fetches.
    pub(super) fn lock(&self, progress: &mut dyn FnMut(&str)) -> Result<File, FetchError> {
        let path = self.file(LOCK);
        let fail = |source| self.error(&path, source);
        let file = File::options().create(true).append(true).open(&path).map_err(fail)?;
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => progress("another process is fetching; waiting for it"),
            Err(TryLockError::Error(source)) => return Err(fail(source)),
        }
        file.lock().map_err(fail)?;
        Ok(file)
    }

    /// A folder that goes when it is dropped. Leftovers of processes that were killed go now: the lock is held.
    pub(super) fn scratch(&self) -> Result<Scratch, FetchError> {
        let path = self.file("fetching");
        if path.exists() {
            fs::remove_dir_all(&path).map_err(|source| self.error(&path, source))?;
        }
        fs::create_dir(&path).map_err(|source| self.error(&path, source))?;
        Ok(Scratch(path))
    }

    pub(super) fn read(&self, name: &str) -> Option<Vec<u8>> {
        fs::read(self.file(name)).ok()
    }

    /// The manifest and busybox, if manifest and files agree. If only modules do not, it is as if there were none.
    pub(super) fn verified(&self) -> Option<(Manifest, Vec<u8>)> {
        let mut manifest = Manifest::parse(&String::from_utf8(self.read(MANIFEST)?).ok()?)?;
        let busybox = self.read(BUSYBOX)?;
        let whole = digest(&busybox) == manifest.busybox && digest(&self.read(KERNEL)?) == manifest.kernel;
        let sound = |(file, sum): &(String, String)| self.read(file).is_some_and(|b| digest(&b) == *sum);
        if !manifest.modules.iter().all(sound) {
            manifest.modules.clear();
        }
        whole.then_some((manifest, busybox))
    }

    /// Manifest last: until it is there, the new files count as damaged.
    pub(super) fn store(
        &self,
        version: &str,
        kernel: &[u8],
        busybox: &[u8],
        modules: &[Module],
    ) -> Result<(), FetchError> {
        self.write(KERNEL, kernel)?;
        self.write(BUSYBOX, busybox)?;
        for module in modules {
            self.write(&module.file_name(), &module.bytes)?;
        }
        let manifest = Manifest::of(version, kernel, busybox, modules);
        self.write(MANIFEST, manifest.to_text().as_bytes())
    }

    /// Under a name of its own first, so that no reader sees half a file.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), FetchError> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let unique = format!(".{name}.{}.{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let (path, temporary) = (self.file(name), self.file(&unique));
        let result = File::create(&temporary)
            .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&temporary, &path));
        result.map_err(|source| {
            // What is left of the attempt; that it may not even exist is no further news.
            let _ = fs::remove_file(&temporary);
            self.error(&path, source)
        })
    }

    fn error(&self, path: &Path, source: std::io::Error) -> FetchError {
        FetchError::Cache { path: path.to_owned(), source }
    }
}

/// A temporary folder.
#[derive(Debug)]
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The next fetch removes what stays behind.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(name: &str) -> (Scratch, Cache) {
        let path = env::temp_dir().join(format!("gearshift-cache-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        (Scratch(path.clone()), Cache::at(path))
    }

    fn module(name: &str) -> Module {
        Module { name: name.to_owned(), bytes: name.as_bytes().to_vec() }
    }

    #[test]
    fn manifests_read_back() {
        let modules = [module("irqbypass"), module("kvm")];
        let manifest = Manifest::of("linux-image-1 1-1", b"kernel", b"busybox", &modules);
        assert_eq!(manifest.modules().collect::<Vec<_>>(), ["irqbypass.ko", "kvm.ko"]);
        assert_eq!(Manifest::parse(&manifest.to_text()), Some(manifest));
        // SHA-256 of the empty message (FIPS 180-4 example).
        assert!(digest(b"").starts_with("e3b0c44298fc1c149afbf4c8996fb924"));
    }

    #[test]
    fn damaged_manifests_are_none() {
        let text = Manifest::of("v", b"k", b"b", &[]).to_text();
        for end in 0..text.len() {
            assert_eq!(Manifest::parse(&text[..end]), None, "{end}");
        }
        // Cut within its modules: nothing, or one without the last of them.
        let both = Manifest::of("v", b"k", b"b", &[module("irqbypass"), module("kvm")]).to_text();
        let one = Manifest::of("v", b"k", b"b", &[module("irqbypass")]);
        for end in text.len() + 1..both.len() {
            let cut = Manifest::parse(&both[..end]);
            assert_eq!(cut.as_ref(), (end == one.to_text().len()).then_some(&one), "{end}");
        }
        for name in ["../x.ko", "vmlinuz"] {
            assert_eq!(Manifest::parse(&format!("{text}sha256 {name} 00\n")), None);
        }
    }

    #[test]
    fn a_damaged_file_counts_as_absent() {
        let (_scratch, cache) = cache("damaged");
        assert!(cache.verified().is_none());
        cache.store("v", b"kernel", b"busy", &[module("kvm")]).unwrap();
        let (manifest, busybox) = cache.verified().unwrap();
        assert_eq!((manifest.version.as_str(), &busybox[..]), ("v", &b"busy"[..]));
        assert_eq!(manifest.modules().collect::<Vec<_>>(), ["kvm.ko"]);
        fs::write(cache.file("kvm.ko"), b"kvn").unwrap();
        assert_eq!(cache.verified().unwrap().0.modules().count(), 0);
        fs::write(cache.file(KERNEL), b"kerne").unwrap();
        assert!(cache.verified().is_none());
        cache.write(KERNEL, b"kernel").unwrap();
        assert!(cache.verified().is_some());
        fs::remove_file(cache.file(BUSYBOX)).unwrap();
        assert!(cache.verified().is_none());
    }

    #[test]
    fn writing_leaves_no_other_file() {
        let (_scratch, cache) = cache("atomic");
        cache.write("x", b"1").unwrap();
        // A directory in the way: the rename fails.
        fs::create_dir(cache.file("y")).unwrap();
        assert!(matches!(cache.write("y", b"1"), Err(FetchError::Cache { .. })));
        let mut names: Vec<_> =
            fs::read_dir(cache.folder()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["x", "y"]);
    }

    #[test]
    fn the_lock_excludes() {
        let (_scratch, cache) = cache("lock");
        let held = cache.lock(&mut |_| panic!("nobody else has it")).unwrap();
        let other = File::open(cache.file(LOCK)).unwrap();
        assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)));
        drop(held);
        other.try_lock().unwrap();
    }
}
