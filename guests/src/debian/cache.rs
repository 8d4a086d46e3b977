//! The folder of one set of files, such as a flavour's: files, manifest, lock.

use super::FetchError;
use sha2::{Digest, Sha256};
use std::env;
use std::fs::{self, File, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

const MANIFEST: &str = "manifest";
const LOCK: &str = "lock";

/// First line of a manifest; another number is another layout.
const HEADER: &str = "gearshift debian guest 1";

/// What the cache holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Manifest {
    pub(super) version: String,
    /// Names of kernel modules that were asked for; a kernel that has one built in has no file of it.
    pub(super) modules: Vec<String>,
    /// File and sum of each: those that the entry is nothing without, then others, each after those it needs. So
    /// a manifest without its last lines is that of an entry with less in it.
    files: Vec<(String, String)>,
}

impl Manifest {
    pub(super) fn of(version: &str, modules: &[String], files: &[(&str, &[u8])]) -> Self {
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), digest(bytes))).collect();
        Self { version: version.to_owned(), modules: modules.to_vec(), files }
    }

    /// Names of the files behind the first `required` ones, in their order.
    pub(super) fn optional(&self, required: usize) -> impl Iterator<Item = &str> {
        self.files.iter().skip(required).map(|(file, _)| file.as_str())
    }

    fn to_text(&self) -> String {
        let mut text = format!("{HEADER}\nversion {}\n", self.version);
        if !self.modules.is_empty() {
            text += &format!("modules {}\n", self.modules.join(" "));
        }
        for (file, sum) in &self.files {
            text += &format!("sha256 {file} {sum}\n");
        }
        text
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.strip_suffix('\n')?.split('\n').peekable();
        if lines.next()? != HEADER {
            return None;
        }
        let version = lines.next()?.strip_prefix("version ")?.to_owned();
        let modules = lines.peek().and_then(|line| line.strip_prefix("modules "));
        let modules: Vec<_> =
            modules.into_iter().flat_map(|names| names.split(' ')).map(str::to_owned).collect();
        if !modules.is_empty() {
            lines.next();
        }
        let file = |line: &str| {
            let (file, sum) = line.strip_prefix("sha256 ")?.split_once(' ')?;
            // A name from a file must not lead out of the folder, nor to the files that this module writes.
            let plain = !file.starts_with('.') && !file.contains('/') && file != MANIFEST && file != LOCK;
            plain.then(|| (file.to_owned(), sum.to_owned()))
        };
        Some(Self { version, modules, files: lines.map(file).collect::<Option<_>>()? })
    }
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One set's folder.
#[derive(Debug)]
pub(super) struct Cache {
    folder: PathBuf,
}

impl Cache {
    pub(super) fn open(name: &str) -> Result<Self, FetchError> {
        let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        // A relative XDG_CACHE_HOME is to be ignored (XDG Base Directory Specification).
        let base = absolute("GEARSHIFT_CACHE")
            .or_else(|| absolute("XDG_CACHE_HOME").map(|path| path.join("gearshift")))
            .or_else(|| absolute("HOME").map(|path| path.join(".cache/gearshift")))
            .ok_or(FetchError::NoCacheFolder)?;
        Ok(Self::at(base.join("debian").join(name)))
    }

    pub(super) fn at(folder: PathBuf) -> Self {
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

    /// The manifest, if it begins with the `required` files and they are what it says. If another of its files is not,
    /// it is as if there were no others.
    pub(super) fn verified(&self, required: &[&str]) -> Option<Manifest> {
        let mut manifest = Manifest::parse(&String::from_utf8(self.read(MANIFEST)?).ok()?)?;
        let (first, others) = manifest.files.split_at_checked(required.len())?;
        let sound = |(file, sum): &(String, String)| self.read(file).is_some_and(|b| digest(&b) == *sum);
        if !first.iter().map(|(file, _)| file).eq(required) || !first.iter().all(sound) {
            return None;
        }
        if !others.iter().all(sound) {
            manifest.files.truncate(required.len());
            manifest.modules.clear();
        }
        Some(manifest)
    }

    /// Manifest last: until it is there, the new files count as damaged.
    pub(super) fn store(
        &self,
        version: &str,
        modules: &[String],
        files: &[(&str, &[u8])],
    ) -> Result<(), FetchError> {
        for (name, bytes) in files {
            self.write(name, bytes)?;
        }
        self.write(MANIFEST, Manifest::of(version, modules, files).to_text().as_bytes())
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

    #[test]
    fn manifests_read_back() {
        let files: [(&str, &[u8]); 3] = [("a", b"1"), ("b.ko", b"2"), ("c.ko", b"3")];
        let manifest = Manifest::of("linux-image-1 1-1", &["b".to_owned(), "d".to_owned()], &files);
        assert_eq!(manifest.optional(1).collect::<Vec<_>>(), ["b.ko", "c.ko"]);
        assert_eq!(Manifest::parse(&manifest.to_text()), Some(manifest));
        // SHA-256 of the empty message (FIPS 180-4 example).
        assert!(digest(b"").starts_with("e3b0c44298fc1c149afbf4c8996fb924"));
    }

    #[test]
    fn damaged_manifests_are_none_or_have_less() {
        let files: [(&str, &[u8]); 3] = [("k", b"1"), ("b", b"2"), ("c", b"3")];
        let all = Manifest::of("v", &[], &files).to_text();
        let shorter = (0..3).map(|n| Manifest::of("v", &[], &files[..n])).collect::<Vec<_>>();
        for end in 0..all.len() {
            let cut = Manifest::parse(&all[..end]);
            assert_eq!(cut.as_ref(), shorter.iter().find(|m| m.to_text().len() == end), "{end}");
        }
        for name in ["../x.ko", ".x", MANIFEST, LOCK] {
            assert_eq!(Manifest::parse(&format!("{all}sha256 {name} 00\n")), None);
        }
    }

    #[test]
    fn a_damaged_file_counts_as_absent() {
        let (_scratch, cache) = cache("damaged");
        let required = ["vmlinuz", "busybox"];
        assert!(cache.verified(&required).is_none());
        let files: [(&str, &[u8]); 3] = [("vmlinuz", b"kernel"), ("busybox", b"busy"), ("kvm.ko", b"kvm")];
        cache.store("v", &["kvm".to_owned()], &files).unwrap();
        let manifest = cache.verified(&required).unwrap();
        assert_eq!((manifest.version.as_str(), &manifest.modules[..]), ("v", &["kvm".to_owned()][..]));
        assert_eq!(manifest.optional(2).collect::<Vec<_>>(), ["kvm.ko"]);
        assert!(cache.verified(&["busybox", "vmlinuz"]).is_none());
        assert!(cache.verified(&["vmlinuz", "busybox", "kvm.ko", "more.ko"]).is_none());
        fs::write(cache.file("kvm.ko"), b"kvn").unwrap();
        let manifest = cache.verified(&required).unwrap();
        assert_eq!((manifest.optional(2).count(), manifest.modules.len()), (0, 0));
        fs::write(cache.file("vmlinuz"), b"kerne").unwrap();
        assert!(cache.verified(&required).is_none());
        cache.write("vmlinuz", b"kernel").unwrap();
        assert!(cache.verified(&required).is_some());
        fs::remove_file(cache.file("busybox")).unwrap();
        assert!(cache.verified(&required).is_none());
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
