//! What the program prints about itself.

mod common;

use common::{gearshift, stderr, stdout};

fn printed(arguments: &[&str]) -> String {
    let output = gearshift(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?} {}", stderr(&output));
    stdout(&output)
}

/// Long options that the help of `run`, `probe` and `image` tells of.
fn flags() -> Vec<String> {
    let mut help = printed(&["run", "--help"]) + &printed(&["probe", "--help"]);
    for command in ["create", "info", "resize", "convert"] {
        help += &printed(&["image", command, "--help"]);
    }
    let lines = help
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("--").or(line.trim_start().strip_prefix("-h, --")));
    let flags: Vec<String> = lines
        .map(|rest| rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').next().unwrap().to_owned())
        .collect();
    assert!(flags.len() >= 11, "{flags:?}");
    flags
}

#[test]
fn help_has_examples_keys_and_exit_codes() {
    let help = printed(&["run", "--help"]);
    for word in
        ["Examples:", "Exit codes:", "Ctrl-a x", "triple fault", "--kernel", "512M", "GEARSHIFT_CACHE"]
    {
        assert!(help.contains(word), "{word}\n{help}");
    }
    assert!(printed(&["--version"]).starts_with("gearshift "));
}

#[test]
fn the_manual_page_and_completions_have_every_flag() {
    let page = printed(&["man"]);
    assert!(page.starts_with(".ie") || page.contains(".TH gearshift"), "{page}");
    for flag in flags() {
        assert!(page.contains(&format!("\\-\\-{}", flag.replace('-', "\\-"))), "{flag}");
        for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
            assert!(printed(&["completions", shell]).contains(&flag), "{shell} {flag}");
        }
    }
}

#[test]
fn probe_tells_people_and_programs_the_same() {
    let table = printed(&["probe"]);
    let json: serde_json::Value = serde_json::from_str(&printed(&["probe", "--json"])).unwrap();
    assert_eq!(json["format"], 2);
    assert!(json["host"]["cpus"].as_u64() >= Some(1) && json["host"]["tsc_khz"].as_u64() > Some(1000));
    let accelerators = json["accelerators"].as_array().unwrap();
    assert!(!accelerators.is_empty());
    for entry in accelerators {
        let name = entry["name"].as_str().unwrap();
        assert!(table.lines().any(|line| line.starts_with(name)), "{name}\n{table}");
        let status = entry["status"].as_str().unwrap();
        assert!(["available", "absent", "broken"].contains(&status), "{status}");
        if status == "available" {
            assert!(entry["max_vcpus"].as_u64() >= Some(1));
            assert_eq!(entry["cpu_models"][0], "x86-64-v2");
        }
    }
    // Exactly one works everywhere.
    assert_eq!(
        accelerators.iter().filter(|e| e["name"] == "interp" && e["status"] == "available").count(),
        1
    );
    assert!(accelerators.iter().any(|e| e["name"] == json["auto"]));
}

/// The keys that docs/using.md promises to programs. One that goes or changes its meaning raises `format`.
#[test]
fn the_keys_of_probe_are_those_of_the_docs() {
    let json: serde_json::Value = serde_json::from_str(&printed(&["probe", "--json"])).unwrap();
    let keys =
        |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(keys(&json), "accelerators auto auto_because format host");
    assert_eq!(keys(&json["host"]), "cpus memory_bytes tsc_khz");
    let page = include_str!("../../docs/using.md");
    for entry in json["accelerators"].as_array().unwrap() {
        let all = "aliases cpu_models max_vcpus measured missing name provider quality reason remedy status summary";
        assert_eq!(keys(entry), all);
        if !entry["measured"].is_null() {
            assert_eq!(keys(&entry["measured"]), "exit_ns native_ns ring0_ns ring3_ns");
        }
        for key in keys(entry).split(' ').chain("exit_ns native_ns ring0_ns ring3_ns auto_because".split(' '))
        {
            assert!(page.contains(&format!("`{key}`")), "{key}");
        }
    }
}
