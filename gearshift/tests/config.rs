//! Configuration files.

mod common;

use std::fs;

use common::{gearshift, stderr, stdout};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Arguments with a file of these contents behind `--config`.
fn with_file(contents: &str, arguments: &[&str]) -> (TempDir, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm.json");
    fs::write(&path, contents).unwrap();
    let mut all: Vec<String> = arguments.iter().map(|&word| word.to_owned()).collect();
    all.extend(["--config".to_owned(), path.display().to_string()]);
    (folder, all)
}

fn shown(contents: &str, arguments: &[&str]) -> Value {
    let (_folder, all) = with_file(contents, &[&["config", "show"], arguments].concat());
    let output = gearshift(&all.iter().map(String::as_str).collect::<Vec<_>>()).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn refused(contents: &str, words: &[&str], code: i32) {
    let (_folder, all) = with_file(contents, &["run", "--offline"]);
    let output = gearshift(&all.iter().map(String::as_str).collect::<Vec<_>>()).output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{contents}: {text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    for word in words {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn what_is_typed_wins_over_the_file() {
    let file = r#"{"cpus": 3, "mem": "1G", "accel": ["jit", "interp"], "stats": true, "guest": "i386", "verify": 50}"#;
    let all = shown(file, &["--cpus", "2", "--kernel", "k"]);
    assert_eq!(all["cpus"], json!(2));
    assert_eq!((&all["mem"], &all["accel"]), (&json!("1G"), &json!(["jit", "interp"])));
    assert_eq!((&all["stats"], &all["debug-console"]), (&json!(true), &json!(false)));
    assert_eq!((&all["kernel"], &all["guest"]), (&json!("k"), &Value::Null), "one excludes the other");
    assert_eq!(all["verify"], json!(50));
}

#[test]
fn what_is_shown_can_be_read() {
    let first =
        shown(r#"{"cmdline": "a=b, \"c d\"", "on-reset": "restart", "verify": true}"#, &["--cpus", "4"]);
    assert_eq!((&first["cmdline"], &first["on-reset"]), (&json!("a=b, \"c d\""), &json!("restart")));
    assert_eq!(shown(&first.to_string(), &[]), first);
}

#[test]
fn firecrackers_sections_are_understood() {
    let file = r#"{
        "boot-source": {"kernel_image_path": "vmlinux", "boot_args": "reboot=k", "initrd_path": null},
        "machine-config": {"vcpu_count": 2, "mem_size_mib": 1024, "smt": false, "track_dirty_pages": true}
    }"#;
    let all = shown(file, &[]);
    assert_eq!((&all["kernel"], &all["cmdline"]), (&json!("vmlinux"), &json!("reboot=k")));
    assert_eq!((&all["cpus"], &all["mem"]), (&json!(2), &json!(1024)));
}

#[test]
fn bad_files_are_refused_in_one_line() {
    refused(r#"{"cpu": "host", "colour": 1}"#, &["colour", "schema"], 2);
    refused(r#"{"cpus": true}"#, &["cpus", "true"], 2);
    refused(r#"{"stats": "yes"}"#, &["stats", "true or false"], 2);
    refused(r#"{"cpus": "many"}"#, &["many", "--cpus"], 2);
    refused(r#"{"on-reset": "sing"}"#, &["sing", "restart"], 2);
    refused(r#"{"machine-config": {"smt": true}}"#, &["smt", "machine-config"], 2);
    refused(r#"{"machine-config": []}"#, &["machine-config", "object"], 2);
    refused(r#"{"kernel": "a", "boot-source": {"kernel_image_path": "b"}}"#, &["kernel", "twice"], 2);
    refused(r#"{"config": "other.json"}"#, &["config"], 2);
    refused("[1, 2", &["line 1"], 2);
    refused(&format!("{{\"cmdline\": \"{}\"}}", "x".repeat(1 << 20)), &["1 MiB"], 2);
    let output = gearshift(&["config", "validate", "/nowhere.json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(10), "{}", stderr(&output));
}

#[test]
fn a_good_file_is_valid_and_the_schema_has_every_option() {
    let (_folder, all) = with_file(r#"{"cpus": 2}"#, &[]);
    let output = gearshift(&["config", "validate", &all[1]]).output().unwrap();
    assert!(output.status.success() && stdout(&output).contains("valid"), "{}", stderr(&output));
    let schema: Value =
        serde_json::from_slice(&gearshift(&["config", "schema"]).output().unwrap().stdout).unwrap();
    let properties = schema["properties"].as_object().unwrap();
    let all = shown("{}", &["--kernel", "k"]);
    for key in all.as_object().unwrap().keys().map(String::as_str).chain(["boot-source", "jitdump", "initrd"])
    {
        assert!(properties.contains_key(key), "{key}");
    }
    assert_eq!(schema["properties"]["on-reset"]["enum"], json!(["end", "restart"]));
    assert!(!properties.contains_key("config") && schema["additionalProperties"] == json!(false));
}
