//! `gearshift image`: makes, shows, resizes and converts, and leaves nothing half.

mod common;

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::process::{Command, Output};

use common::{gearshift, stderr, stdout};
use tempfile::TempDir;

const USAGE: i32 = 2;
const FILE: i32 = 10;
const HOST: i32 = 22;

struct Images(TempDir);

impl Images {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let all: Vec<_> = ["image"].iter().chain(arguments).copied().collect();
        gearshift(&all).current_dir(self.0.path()).output().unwrap()
    }

    #[track_caller]
    fn works(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?} {}", stderr(&output));
        assert_eq!(stderr(&output), "");
        stdout(&output)
    }

    #[track_caller]
    fn refused(&self, arguments: &[&str], code: i32, word: &str) {
        let output = self.run(arguments);
        let text = stderr(&output);
        assert_eq!((output.status.code(), text.lines().count()), (Some(code), 1), "{arguments:?} {text}");
        assert!(text.contains(word), "no {word:?} in {text}");
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn an_image_lives_its_life() {
    let images = Images::new();
    images.works(&["create", "a.qcow2", "8M"]);
    images.works(&["resize", "a.qcow2", "16M"]);
    let info = images.works(&["info", "a.qcow2"]);
    assert!(info.contains("qcow2") && info.contains("16.0 MiB (16777216 bytes)"), "{info}");
    images.works(&["convert", "a.qcow2", "a.raw"]);
    assert_eq!(fs::metadata(images.0.path().join("a.raw")).unwrap().len(), 16 << 20);
    images.works(&["create", "top.qcow2", "--backing", "a.raw", "--backing-format", "raw"]);
    let json: serde_json::Value =
        serde_json::from_str(&images.works(&["info", "--json", "top.qcow2"])).unwrap();
    assert_eq!((&json["format"], &json["size"]), (&"qcow2".into(), &(16 << 20).into()));
    assert_eq!((&json["backing"], &json["backing_format"]), (&"a.raw".into(), &"raw".into()));
    assert_eq!(images.names(), ["a.qcow2", "a.raw", "top.qcow2"]);
}

#[test]
fn what_cannot_be_is_one_line() {
    let images = Images::new();
    images.works(&["create", "a", "1M"]);
    images.refused(&["create", "a", "1M"], USAGE, "--force");
    images.works(&["create", "a", "2M", "--force"]);
    images.refused(&["create", "b"], USAGE, "SIZE");
    images.refused(&["create", "b", "1M", "--format", "vhd"], USAGE, "raw, qcow2");
    images.refused(&["create", "b", "1M", "--format", "vmdk"], USAGE, "raw or qcow2");
    images.refused(&["create", "nowhere/b", "1M"], HOST, "No such file");
    images.refused(&["resize", "a", "1M"], USAGE, "--shrink");
    images.refused(&["info", "b"], FILE, "No such file");
    images.refused(&["info", "."], FILE, "a folder");
    images.refused(&["convert", "a", "a", "--force"], FILE, "in use");
    fs::write(images.0.path().join("evil"), b"QFI\xfb").unwrap();
    images.refused(&["convert", "evil", "c"], FILE, "format=qcow2");
    assert_eq!(images.names(), ["a", "evil"]);
}

/// A limit of the shell's stands for a file system that is full.
#[test]
fn a_full_file_system_leaves_nothing_behind() {
    let images = Images::new();
    let source = fs::File::create(images.0.path().join("a")).unwrap();
    source.write_all_at(&vec![1; 4 << 20], 0).unwrap();
    for format in ["raw", "qcow2"] {
        let script = "ulimit -f 2048; exec \"$0\" image convert a b --format \"$1\"";
        let output = Command::new("sh")
            .args(["-c", script, env!("CARGO_BIN_EXE_gearshift"), format])
            .current_dir(images.0.path())
            .output()
            .unwrap();
        let text = stderr(&output);
        assert_eq!(
            (output.status.code(), text.lines().count()),
            (Some(HOST), 1),
            "{:?} {text}",
            output.status
        );
        assert!(text.contains("nothing was left behind"), "{text}");
        assert_eq!(images.names(), ["a"]);
    }
}
