#![expect(clippy::print_stderr, reason = "what is not tested has to be said")]

use super::*;
use std::os::unix::fs::FileExt as _;
use std::process::Command;
use tempfile::TempDir;

/// Runs qemu-img, if there is one; says so if not.
fn qemu_img(arguments: &[&str]) -> Option<String> {
    let output = match Command::new("qemu-img").args(arguments).output() {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            eprintln!("not compared with qemu-img {}: there is none", arguments.join(" "));
            return None;
        }
        Err(error) => panic!("qemu-img: {error}"),
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "qemu-img {arguments:?}: {text}{errors}");
    Some(text)
}

fn target(folder: &TempDir, name: &str, format: Format) -> Target {
    Target { path: folder.path().join(name), format, overwrite: false }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// 5 MiB and a half sector's worth less, with data at both ends and a hole between.
fn source(folder: &TempDir) -> PathBuf {
    let path = folder.path().join("source");
    let file = File::create(&path).unwrap();
    file.set_len(5 << 20).unwrap();
    file.write_all_at(&[1; 70_000], 100).unwrap();
    file.write_all_at(&[2; 512], (5 << 20) - 512).unwrap();
    path
}

#[test]
fn images_are_created_and_told_of() {
    let folder = TempDir::new().unwrap();
    for (format, cluster) in [(Format::Raw, None), (Format::Qcow2, Some(CLUSTER))] {
        let target = target(&folder, format.name(), format);
        create(&target, 3 << 30, None).unwrap();
        let info = info(&target.path, Some(format)).unwrap();
        assert_eq!((info.format, info.size, info.cluster, &info.backing), (format, 3 << 30, cluster, &None));
        assert!(info.allocated < 1 << 20, "{info:?}");
        if let Some(text) = qemu_img(&["info", "-f", format.name(), text(&target.path)]) {
            assert!(text.contains("3 GiB (3221225472 bytes)"), "{text}");
        }
        if format == Format::Qcow2 {
            qemu_img(&["check", text(&target.path)]);
        }
    }
}

#[test]
fn a_backing_file_is_named() {
    let folder = TempDir::new().unwrap();
    let source = source(&folder);
    let target = target(&folder, "top.qcow2", Format::Qcow2);
    create(&target, 5 << 20, Some(("source", Format::Raw))).unwrap();
    let info = info(&target.path, None).unwrap();
    assert_eq!((info.backing.as_deref(), info.backing_format.as_deref()), (Some("source"), Some("raw")));
    qemu_img(&["compare", text(&target.path), text(&source)]);
    let raw = Target { format: Format::Raw, ..target };
    assert!(matches!(create(&raw, 512, Some(("source", Format::Raw))), Err(ToolError::Format(Format::Raw))));
}

#[test]
fn conversions_keep_every_byte() {
    let folder = TempDir::new().unwrap();
    let source = source(&folder);
    let qcow2 = target(&folder, "copy.qcow2", Format::Qcow2);
    let raw = target(&folder, "copy.raw", Format::Raw);
    let mut steps = vec![];
    let from = |path: &Path, format| DiskOptions { format: Some(format), ..DiskOptions::new(path) };
    convert(&from(&source, Format::Raw), &qcow2, &mut |done, all| {
        steps.push((done, all));
        true
    })
    .unwrap();
    assert!(steps.is_sorted() && steps.last() == Some(&(5 << 20, 5 << 20)), "{steps:?}");
    convert(&from(&qcow2.path, Format::Qcow2), &raw, &mut |_, _| true).unwrap();
    assert!(fs::read(&source).unwrap() == fs::read(&raw.path).unwrap());
    assert!(info(&raw.path, None).unwrap().allocated < 1 << 20, "holes are gone");
    qemu_img(&["check", text(&qcow2.path)]);
    qemu_img(&["compare", text(&qcow2.path), text(&source)]);
    // And what qemu-img made, with compressed clusters.
    let made = folder.path().join("made.qcow2");
    if qemu_img(&["convert", "-c", "-O", "qcow2", text(&source), text(&made)]).is_some() {
        let back = target(&folder, "back", Format::Raw);
        convert(&from(&made, Format::Qcow2), &back, &mut |_, _| true).unwrap();
        assert!(fs::read(&source).unwrap() == fs::read(&back.path).unwrap());
    }
}

#[test]
fn sizes_grow_and_shrink_only_when_told() {
    let folder = TempDir::new().unwrap();
    for format in [Format::Raw, Format::Qcow2] {
        let target = target(&folder, format.name(), format);
        create(&target, 1 << 20, None).unwrap();
        let before = fs::metadata(&target.path).unwrap().len();
        let options = DiskOptions { format: Some(format), ..DiskOptions::new(&target.path) };
        let size = || info(&target.path, Some(format)).unwrap().size;
        resize(&options, 1 << 32, false).unwrap();
        assert_eq!(size(), 1 << 32);
        assert!(matches!(resize(&options, 512, false), Err(ToolError::Shrink { .. })));
        assert_eq!(size(), 1 << 32);
        resize(&options, 512, true).unwrap();
        assert_eq!(size(), 512);
        assert!(matches!(resize(&options, 100, true), Err(ToolError::Size(100))));
        if format == Format::Qcow2 {
            // The size of the disk is not that of the file.
            let after = fs::metadata(&target.path).unwrap().len();
            assert!((before..1 << 20).contains(&after), "{before} {after}");
            qemu_img(&["check", text(&target.path)]);
        }
    }
}

#[test]
fn nothing_is_overwritten_or_left_behind() {
    let folder = TempDir::new().unwrap();
    let names = || {
        let mut names: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let source = source(&folder);
    let before = fs::read(&source).unwrap();
    let onto = Target { path: source.clone(), format: Format::Qcow2, overwrite: false };
    assert!(matches!(create(&onto, 512, None), Err(ToolError::Exists(_))));
    let options = DiskOptions { format: Some(Format::Raw), ..DiskOptions::new(&source) };
    let new = target(&folder, "new", Format::Qcow2);
    // The user interrupts.
    assert!(convert(&options, &new, &mut |done, _| done == 0).is_err());
    assert!(matches!(create(&new, 100, None), Err(ToolError::Size(100))));
    assert!(matches!(
        create(&Target { format: Format::Vmdk, ..new.clone() }, 512, None),
        Err(ToolError::Format(_))
    ));
    assert_eq!(names(), ["source"]);
    assert!(fs::read(&source).unwrap() == before);
    // Onto itself, and onto what a machine uses.
    let over = Target { overwrite: true, ..onto };
    assert!(convert(&options, &over, &mut |_, _| true).unwrap_err().to_string().contains("in use"));
    let disk = super::super::DiskImage::open(&options).unwrap();
    assert!(create(&over, 512, None).unwrap_err().to_string().contains("in use"));
    drop(disk);
    create(&over, 512, None).unwrap();
    assert_eq!((names().len(), info(&source, Some(Format::Qcow2)).unwrap().size), (1, 512));
    let folder_target = Target { path: folder.path().to_owned(), format: Format::Raw, overwrite: true };
    assert!(matches!(create(&folder_target, 512, None), Err(ToolError::NotAFile(_))));
}

/// QEMU's programs and ours keep each other out.
#[test]
fn qemu_respects_our_locks_and_we_its() {
    let folder = TempDir::new().unwrap();
    let target = target(&folder, "d.qcow2", Format::Qcow2);
    create(&target, 1 << 20, None).unwrap();
    if qemu_img(&["info", text(&target.path)]).is_none() {
        return;
    }
    let options = DiskOptions::new(&target.path);
    let disk = super::super::DiskImage::open(&options).unwrap();
    let refused = Command::new("qemu-img").args(["info", text(&target.path)]).output().unwrap();
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("lock"), "{refused:?}");
    drop(disk);
    let mut child = match Command::new("qemu-io")
        .arg(text(&target.path))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
    {
        Ok(child) => child,
        Err(error) => {
            eprintln!("not tested beside qemu-io: {error}");
            return;
        }
    };
    // Its prompt comes when it has the image.
    use std::io::Read as _;
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 4]).unwrap();
    let error = super::super::DiskImage::open(&options).unwrap_err();
    assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    drop(child.stdin.take());
    child.wait().unwrap();
    assert!(super::super::DiskImage::open(&options).is_ok());
}
