//! What users do with images outside of a machine: create, look, resize, convert.
//!
//! New images are made under a temporary name beside the target and renamed when they are whole and stable, so that
//! neither a full file system nor a kill leaves half an image, and nothing is overwritten by accident.

use super::chain::{self, DiskFile, parent};
use super::error::OpenError;
use super::lock::{self, Intent, Outcome};
use super::options::{DiskOptions, Format};
use super::ordered::Ordered;
use super::storage::{End, ImageFile};
use imago::format::PreallocateMode;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder as _, Mapping};
use rustix::fs::SeekFrom;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;
use thiserror::Error;

/// Cluster of images that are made here, QEMU's default too.
const CLUSTER: u64 = 65536;

/// Bytes that are read at once.
const CHUNK: u64 = 2 << 20;

/// Why an image could not be made or changed. Nothing was left behind.
#[derive(Debug, Error)]
pub enum ToolError {
    /// An image cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There is something of that name.
    #[error("{} exists; --force replaces it", .0.display())]
    Exists(PathBuf),
    /// It exists and is no regular file.
    #[error("{} is not a regular file; images are made as regular files only", .0.display())]
    NotAFile(PathBuf),
    /// A size that cannot be.
    #[error("an image cannot have {0} bytes: the size is a multiple of 512, and has an end below 2^63")]
    Size(u64),
    /// A size below what the image has.
    #[error(
        "{} has {from} bytes; --shrink cuts it to {to}, and what lies behind is lost", path.display()
    )]
    Shrink {
        /// The image.
        path: PathBuf,
        /// Its size in bytes.
        from: u64,
        /// The size that was asked for.
        to: u64,
    },
    /// A format that can only be read.
    #[error("{0} images can only be read here; take raw or qcow2")]
    Format(Format),
    /// The host could not.
    #[error("cannot {doing} {}: {source}{}", path.display(), remedy(source))]
    Host {
        /// What was tried.
        doing: &'static str,
        /// The image.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; nothing was left behind: free some space"
        }
        io::ErrorKind::FileTooLarge => {
            "; nothing was left behind: its file system or a limit allows no such file"
        }
        _ => "",
    }
}

fn host(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> ToolError {
    move |source| ToolError::Host { doing, path: path.to_owned(), source }
}

/// What an image is, by its own header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// Its format, named or found.
    pub format: Format,
    /// Bytes that the guest sees.
    pub size: u64,
    /// Bytes that the file takes on the host.
    pub allocated: u64,
    /// Bytes of a cluster, where the format allocates.
    pub cluster: Option<u64>,
    /// The backing file as the image names it.
    pub backing: Option<String>,
    /// The format of the backing file as the image names it; none is raw.
    pub backing_format: Option<String>,
}

/// Looks at an image without locks, and without what it stands on.
///
/// # Errors
/// [`ToolError::Open`].
pub fn info(path: &Path, format: Option<Format>) -> Result<ImageInfo, ToolError> {
    let options = DiskOptions { format, read_only: true, ..DiskOptions::new(path) };
    let look = chain::look(&options)?;
    let allocated = fs::metadata(path).map_err(host("look at", path))?.blocks().saturating_mul(512);
    let chain::Look { format, size, cluster, backing, backing_format } = look;
    Ok(ImageInfo {
        format,
        size,
        allocated,
        cluster: (cluster > 1).then_some(cluster),
        backing,
        backing_format,
    })
}

/// An image that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Where it will be.
    pub path: PathBuf,
    /// Its format: raw or qcow2.
    pub format: Format,
    /// A file of that name may be replaced.
    pub overwrite: bool,
}

/// Makes an empty image of `size` bytes, or one that shows `backing`: its name as the image will have it, and its format.
///
/// # Errors
/// [`ToolError`].
pub fn create(target: &Target, size: u64, backing: Option<(&str, Format)>) -> Result<(), ToolError> {
    if backing.is_some() && target.format != Format::Qcow2 {
        return Err(ToolError::Format(target.format));
    }
    let pending = Pending::new(target)?;
    drop(pending.format(size, backing)?);
    pending.finish()
}

/// Sets the size of the image that `options` name to `size` bytes.
///
/// # Errors
/// [`ToolError`]; a smaller size without `shrink` is one.
pub fn resize(options: &DiskOptions, size: u64, shrink: bool) -> Result<(), ToolError> {
    check_size(size)?;
    let path = &options.path;
    let mut access = chain::open(options, true)?.access;
    let from = access.size();
    if size < from && !shrink {
        return Err(ToolError::Shrink { path: path.clone(), from, to: size });
    }
    access
        .resize(size, PreallocateMode::None)
        .and_then(|()| access.flush())
        .and_then(|()| access.sync())
        .map_err(host("resize", path))
}

/// Copies what a guest would see of `source` into a new image. `progress` gets bytes done and bytes in all; it is asked
/// whether to go on.
///
/// # Errors
/// [`ToolError`]; an interruption by `progress` is [`io::ErrorKind::Interrupted`].
pub fn convert(
    source: &DiskOptions,
    target: &Target,
    progress: &mut dyn FnMut(u64, u64) -> bool,
) -> Result<(), ToolError> {
    let source = DiskOptions { read_only: true, ..source.clone() };
    let opened = chain::open(&source, true)?;
    let size = opened.access.size();
    let pending = Pending::new(target)?;
    let access = pending.format(size.next_multiple_of(512), None)?;
    // A raw file knows where its holes are.
    let holes = (opened.format == Format::Raw).then(|| File::open(&source.path)).and_then(Result::ok);
    let mut buffer = vec![0; usize::try_from(CHUNK).unwrap_or(0)];
    let mut at = 0;
    while at < size {
        if !progress(at, size) {
            return Err(host("convert", &source.path)(io::ErrorKind::Interrupted.into()));
        }
        if let Some(file) = &holes {
            let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
                Ok(data) => data.min(size),
                Err(rustix::io::Errno::NXIO) => size,
                Err(_) => at,
            };
            if data > at {
                at = data;
                continue;
            }
        }
        let length = CHUNK.min(size - at);
        let mapping = opened.access.get_mapping(at, length).map_err(host("read", &source.path))?;
        match mapping {
            (Mapping::Zero { .. }, zero) if zero > 0 => at += zero,
            _ => {
                let data = buffer.get_mut(..usize::try_from(length).unwrap_or(0)).unwrap_or_default();
                opened.access.read(&mut *data, at).map_err(host("read", &source.path))?;
                write_data(&access, data, at).map_err(host("write", &target.path))?;
                at += length;
            }
        }
    }
    access.flush().map_err(host("write", &target.path))?;
    drop(access);
    pending.finish()?;
    progress(size, size);
    Ok(())
}

/// Writes what is not zero: the target is new, and reads as zeroes.
fn write_data(access: &FormatAccess<DiskFile>, data: &[u8], at: u64) -> io::Result<()> {
    let mut offset = at;
    for piece in data.chunks(usize::try_from(CLUSTER).unwrap_or(1)) {
        if piece.iter().any(|byte| *byte != 0) {
            access.write(piece, offset)?;
        }
        offset += piece.len() as u64;
    }
    Ok(())
}

fn check_size(size: u64) -> Result<(), ToolError> {
    let good = size.is_multiple_of(512) && i64::try_from(size).is_ok();
    if good { Ok(()) } else { Err(ToolError::Size(size)) }
}

/// A new image under its temporary name, which goes unless it is finished.
struct Pending<'a> {
    file: NamedTempFile,
    target: &'a Target,
}

impl<'a> Pending<'a> {
    fn new(target: &'a Target) -> Result<Self, ToolError> {
        let path = &target.path;
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(host("create", path)(error)),
            Ok(_) if !target.overwrite => return Err(ToolError::Exists(path.clone())),
            Ok(found) if !found.is_file() => return Err(ToolError::NotAFile(path.clone())),
            // Whoever uses the old image would go on with a file that has no name.
            Ok(_) => {
                let old = File::open(path).map_err(host("replace", path))?;
                if let Outcome::Conflict(holds) =
                    lock::lock(&old, Intent::Write).map_err(host("replace", path))?
                {
                    return Err(OpenError::Locked { path: path.clone(), holds }.into());
                }
            }
        }
        let file = tempfile::Builder::new()
            .prefix(".gearshift-image-")
            .permissions(fs::Permissions::from_mode(0o666))
            .tempfile_in(parent(path))
            .map_err(host("create", path))?;
        Ok(Self { file, target })
    }

    /// Gives the file its format and size.
    fn format(
        &self,
        size: u64,
        backing: Option<(&str, Format)>,
    ) -> Result<FormatAccess<DiskFile>, ToolError> {
        check_size(size)?;
        let path = &self.target.path;
        let make = || -> io::Result<_> {
            let file = self.file.as_file().try_clone()?;
            match self.target.format {
                Format::Raw => {
                    file.set_len(size)?;
                    let file = ImageFile::new(file, path, true, false, End::Fixed)?;
                    Ok(FormatAccess::new(Raw::open_image(Ordered::plain(file), true)?))
                }
                _ => {
                    let file = ImageFile::new(file, path, true, false, End::Cluster(CLUSTER))?;
                    let mut builder = Qcow2::<DiskFile>::create_builder(Ordered::plain(file)).size(size);
                    if let Some((name, format)) = backing {
                        builder = builder.backing(name.to_owned(), format.name().to_owned());
                    }
                    let image = builder.create_open(DenyImplicitOpenGate::default(), |file| {
                        Ok(Qcow2::builder(file).backing(None))
                    })?;
                    let access = FormatAccess::new(image);
                    access.flush()?;
                    Ok(access)
                }
            }
        };
        if self.target.format == Format::Vmdk {
            return Err(ToolError::Format(Format::Vmdk));
        }
        make().map_err(host("create", path))
    }

    /// Makes it stable and gives it its name.
    fn finish(self) -> Result<(), ToolError> {
        let Target { path, overwrite, .. } = self.target;
        self.file.as_file().sync_all().map_err(host("write", path))?;
        let named = if *overwrite { self.file.persist(path) } else { self.file.persist_noclobber(path) };
        named.map_err(|error| match error.error.kind() {
            io::ErrorKind::AlreadyExists => ToolError::Exists(path.clone()),
            _ => host("create", path)(error.error),
        })?;
        // The name is in the folder, which has to be stable too.
        File::open(parent(path)).and_then(|folder| folder.sync_all()).map_err(host("write", path))
    }
}

#[cfg(test)]
mod tests;
