//! Opening an image with all files that it stands on.

use super::error::OpenError;
use super::lock::{self, Intent, Outcome};
use super::options::{BackingPolicy, Cache, DiskOptions, Format};
use super::ordered::Ordered;
use super::probe;
use super::storage::{End, ImageFile};
use imago::format::drivers::FormatDriverInstance as _;
use imago::format::gate::ImplicitOpenGate;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::vmdk::Vmdk;
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder as _, FormatDriverBuilder, StorageOpenOptions,
};
use rustix::fs::{FileType, OFlags};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Most images in a chain of backing files. A loop ends here too.
const MAX_DEPTH: usize = 32;

/// Bytes of a qcow2 header that are looked at here.
const QCOW2_HEADER: usize = 72;

/// A file under an image, with its writes in order.
pub(super) type DiskFile = Ordered<ImageFile>;

/// An open image.
pub(super) struct Opened {
    pub(super) access: FormatAccess<DiskFile>,
    pub(super) format: Format,
    /// Bytes in which the format allocates; 1 for raw.
    pub(super) cluster: u64,
}

/// What holds for all files of one chain.
struct Chain<'a> {
    options: &'a DiskOptions,
    /// Canonical folder of the image that the user named.
    folder: PathBuf,
    /// Without locks: to look at an image's header only.
    locked: bool,
}

/// Opens what `options` name, for writing if they say so and not as a snapshot.
pub(super) fn open(options: &DiskOptions, locked: bool) -> Result<Opened, OpenError> {
    let writable = !options.read_only && !options.snapshot;
    let (chain, file) = Chain::start(options, locked, writable)?;
    let path = &options.path;
    let format = chain.format(&file)?;
    if format == Format::Vmdk && writable {
        return Err(OpenError::ReadOnlyFormat { path: path.clone(), format });
    }
    chain.open_format(file, path, format, writable, 1)
}

/// What the file of an image says, without what it stands on.
pub(super) struct Look {
    pub(super) format: Format,
    pub(super) size: u64,
    pub(super) cluster: u64,
    pub(super) backing: Option<String>,
    pub(super) backing_format: Option<String>,
}

/// Looks at what `options` name, without locks.
pub(super) fn look(options: &DiskOptions) -> Result<Look, OpenError> {
    let (chain, file) = Chain::start(options, false, false)?;
    let path = &options.path;
    let format = chain.format(&file)?;
    if format == Format::Qcow2 {
        let (image, cluster) = chain.open_qcow2(file, path, false)?;
        return Ok(Look {
            format,
            size: image.size(),
            cluster,
            backing: image.implicit_backing_file().cloned(),
            backing_format: image.implicit_backing_format().cloned(),
        });
    }
    let opened = chain.open_format(file, path, format, false, 1)?;
    Ok(Look { format, size: opened.access.size(), cluster: 1, backing: None, backing_format: None })
}

/// A temporary qcow2 image without a name on top of `base`: it vanishes with its descriptor.
pub(super) fn overlay(base: FormatAccess<DiskFile>, path: &Path) -> Result<Opened, OpenError> {
    let folder = std::env::temp_dir();
    let failed = |source: io::Error| OpenError::Option {
        path: path.to_owned(),
        reason: format!("cannot make the temporary overlay of snapshot=on in {}: {source}", folder.display()),
    };
    let file = tempfile::tempfile_in(&folder).map_err(failed)?;
    let cluster = 65536;
    // Nobody reads it after a power cut, so its writes need no order.
    let file = ImageFile::new(file, &folder, true, false, End::Cluster(cluster)).map_err(failed)?;
    let file = Ordered::plain(file);
    let size = base.size();
    let overlay = Qcow2::<DiskFile>::create_builder(file)
        .size(size)
        .create_open(DenyImplicitOpenGate::default(), |file| Ok(Qcow2::builder(file).backing(Some(base))))
        .map_err(failed)?;
    Ok(Opened { access: FormatAccess::new(overlay), format: Format::Qcow2, cluster })
}

fn invalid(path: &Path, format: Format, reason: String) -> OpenError {
    OpenError::Invalid { path: path.to_owned(), format, reason: explain(reason) }
}

fn host(path: &Path, source: io::Error) -> OpenError {
    OpenError::Host { path: path.to_owned(), source }
}

pub(super) fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

impl<'a> Chain<'a> {
    /// Opens the file that the user named.
    fn start(options: &'a DiskOptions, locked: bool, writable: bool) -> Result<(Self, File), OpenError> {
        let path = &options.path;
        let folder = parent(path).canonicalize().map_err(|source| host(path, source))?;
        let chain = Self { options, folder, locked };
        let file = chain.open_file(path, writable)?;
        Ok((chain, file))
    }

    /// The format of that file, named or found.
    fn format(&self, file: &File) -> Result<Format, OpenError> {
        self.options.format.map_or_else(|| probe::format(file, &self.options.path), Ok)
    }

    /// A qcow2 image that waits for its backing file, and its cluster's size.
    fn open_qcow2(
        &self,
        file: File,
        path: &Path,
        writable: bool,
    ) -> Result<(Qcow2<DiskFile>, u64), OpenError> {
        let invalid = |reason: String| invalid(path, Format::Qcow2, reason);
        let cluster = check_qcow2(&file, path, &invalid)?;
        let file = self.storage(file, path, writable, End::Cluster(cluster))?;
        let data = file.data();
        let mut image = Qcow2::<DiskFile>::open_image(file, writable).map_err(|e| invalid(e.to_string()))?;
        if image.requires_external_data_file() {
            return Err(invalid("its data is in another file, which is not supported".to_owned()));
        }
        image.set_data_file(Some(data));
        Ok((image, cluster))
    }

    fn storage(&self, file: File, path: &Path, writable: bool, end: End) -> Result<DiskFile, OpenError> {
        let file = ImageFile::new(file, path, writable, self.direct(), end);
        let handle = if end == End::Fixed { Ordered::plain } else { Ordered::tables };
        file.map(handle).map_err(|source| host(path, source))
    }

    /// Opens a regular file or a block device, and locks it.
    fn open_file(&self, path: &Path, writable: bool) -> Result<File, OpenError> {
        // A FIFO would hold an open without O_NONBLOCK until somebody opens its other end.
        let mut flags = OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        if self.direct() {
            flags |= OFlags::DIRECT;
        }
        let file = fs::OpenOptions::new()
            .read(true)
            .write(writable)
            .custom_flags(flags.bits().cast_signed())
            .open(path)
            .map_err(|source| match fs::metadata(path) {
                Ok(m) if m.is_dir() => OpenError::NotADisk { path: path.to_owned(), what: "a folder" },
                _ => host(path, source),
            })?;
        let mode = rustix::fs::fstat(&file).map_err(|e| host(path, e.into()))?.st_mode;
        let what = match FileType::from_raw_mode(mode) {
            FileType::RegularFile | FileType::BlockDevice => None,
            FileType::Directory => Some("a folder"),
            FileType::Fifo => Some("a pipe"),
            FileType::CharacterDevice => Some("a character device"),
            _ => Some("something else"),
        };
        if let Some(what) = what {
            return Err(OpenError::NotADisk { path: path.to_owned(), what });
        }
        if self.locked {
            let intent = if writable { Intent::Write } else { Intent::Read };
            match lock::lock(&file, intent).map_err(|source| host(path, source))? {
                Outcome::Held => {}
                Outcome::Unsupported => tracing::warn!(
                    "disk {}: its file system has no locks; nothing keeps other programs from writing to it",
                    path.display()
                ),
                Outcome::Conflict(holds) => return Err(OpenError::Locked { path: path.to_owned(), holds }),
            }
        }
        Ok(file)
    }

    fn direct(&self) -> bool {
        self.options.cache == Cache::None
    }

    fn open_format(
        &self,
        file: File,
        path: &Path,
        format: Format,
        writable: bool,
        depth: usize,
    ) -> Result<Opened, OpenError> {
        let invalid = |reason: String| invalid(path, format, reason);
        match format {
            Format::Raw => {
                let raw = Raw::open_image(self.storage(file, path, writable, End::Fixed)?, writable);
                let access = FormatAccess::new(raw.map_err(|e| invalid(e.to_string()))?);
                Ok(Opened { access, format, cluster: 1 })
            }
            Format::Qcow2 => {
                let (mut image, cluster) = self.open_qcow2(file, path, writable)?;
                let backing = match image.implicit_backing_file().cloned() {
                    None => None,
                    Some(name) => {
                        let format = image.implicit_backing_format().cloned();
                        Some(self.open_backing(path, &name, format.as_deref(), depth + 1, &invalid)?)
                    }
                };
                image.set_backing(backing);
                Ok(Opened { access: FormatAccess::new(image), format, cluster })
            }
            Format::Vmdk => {
                let file = self.storage(file, path, writable, End::Fixed)?;
                let mut refused = None;
                let gate = Extents { chain: self, image: path, refused: &mut refused };
                let image = Vmdk::<DiskFile>::builder(file).open(gate);
                if let Some(error) = refused {
                    return Err(error);
                }
                let image = image.map_err(|e| invalid(e.to_string()))?;
                Ok(Opened { access: FormatAccess::new(image), format, cluster: 1 })
            }
        }
    }

    /// The image under `path`, read-only. Without a format it is raw: probing it would trust whoever wrote it.
    fn open_backing(
        &self,
        path: &Path,
        name: &str,
        format: Option<&str>,
        depth: usize,
        invalid: &dyn Fn(String) -> OpenError,
    ) -> Result<FormatAccess<DiskFile>, OpenError> {
        if depth > MAX_DEPTH {
            return Err(invalid(format!("its chain of backing files has more than {MAX_DEPTH} images")));
        }
        let format = match format {
            None | Some("file") => Format::Raw,
            Some(name) => name.parse().map_err(invalid)?,
        };
        let backing = self.resolve(path, name)?;
        let file = self.open_file(&backing, false)?;
        Ok(self.open_format(file, &backing, format, false, depth)?.access)
    }

    /// The canonical path of what the image at `path` names, if it may name it.
    fn resolve(&self, path: &Path, name: &str) -> Result<PathBuf, OpenError> {
        let named = parent(path).join(name);
        let inside =
            |found: &Path| self.options.backing == BackingPolicy::Allow || found.starts_with(&self.folder);
        // A name outside is refused before anything tells whether the file is there.
        let outside = || OpenError::Outside { image: path.to_owned(), path: named.clone() };
        match named.canonicalize() {
            Ok(found) if inside(&found) => Ok(found),
            Ok(_) => Err(outside()),
            Err(_) if !parent(&named).canonicalize().is_ok_and(|folder| inside(&folder)) => Err(outside()),
            Err(source) => Err(host(&named, source)),
        }
    }
}

/// What imago does not check, or says less clearly. Returns the size of a cluster.
fn check_qcow2(file: &File, path: &Path, invalid: &dyn Fn(String) -> OpenError) -> Result<u64, OpenError> {
    let head = probe::read_head(file).map_err(|e| host(path, e))?;
    if head.len() < QCOW2_HEADER || !head.starts_with(b"QFI\xfb") {
        return Err(invalid(
            "it does not begin with a qcow2 header; if it is raw, say format=raw".to_owned(),
        ));
    }
    let word =
        |at: usize| head.get(at..at + 4).map_or(0, |b| b.iter().fold(0, |n, b| n << 8 | u32::from(*b)));
    if word(32) != 0 {
        return Err(invalid("it is encrypted, which is not supported; convert it with qemu-img".to_owned()));
    }
    match word(20) {
        bits @ 9..=21 => Ok(1 << bits),
        bits => Err(invalid(format!("its clusters would have 2^{bits} bytes"))),
    }
}

/// Adds the remedy to what imago says where there is one.
fn explain(reason: String) -> String {
    let lower = reason.to_ascii_lowercase();
    if lower.contains("dirty") || lower.contains("corrupt") {
        return format!("{reason}; qemu-img check -r all may repair it");
    }
    reason
}

/// Opens the extents of a VMDK under the rule for backing files.
struct Extents<'a> {
    chain: &'a Chain<'a>,
    image: &'a Path,
    refused: &'a mut Option<OpenError>,
}

impl ImplicitOpenGate<DiskFile> for Extents<'_> {
    fn open_format<F: FormatDriverBuilder<DiskFile>>(&mut self, _: F) -> io::Result<FormatAccess<DiskFile>> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "images below a VMDK are not supported"))
    }

    fn open_storage(&mut self, options: StorageOpenOptions) -> io::Result<DiskFile> {
        let name = options.get_filename().and_then(Path::to_str).unwrap_or_default().to_owned();
        let opened = self.chain.resolve(self.image, &name).and_then(|path| {
            let file = self.chain.open_file(&path, false)?;
            let file = ImageFile::new(file, &path, false, self.chain.direct(), End::Fixed);
            file.map(Ordered::plain).map_err(|e| host(&path, e))
        });
        opened.map_err(|error| {
            let text = error.to_string();
            *self.refused = Some(error);
            io::Error::other(text)
        })
    }
}
