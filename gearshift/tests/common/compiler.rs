//! The C compiler that cargo links with, as the one who knows what processors are called and what their names promise.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Names that GCC 14 or LLVM 20 may be asked for by `__builtin_cpu_is`.
const NAMES: &[&str] = &[
    "intel",
    "amd",
    "atom",
    "slm",
    "bonnell",
    "silvermont",
    "goldmont",
    "goldmont-plus",
    "tremont",
    "gracemont",
    "sierraforest",
    "grandridge",
    "clearwaterforest",
    "knl",
    "knm",
    "core2",
    "corei7",
    "nehalem",
    "westmere",
    "sandybridge",
    "ivybridge",
    "haswell",
    "broadwell",
    "skylake",
    "skylake-avx512",
    "cascadelake",
    "cooperlake",
    "cannonlake",
    "icelake-client",
    "icelake-server",
    "rocketlake",
    "tigerlake",
    "alderlake",
    "raptorlake",
    "meteorlake",
    "arrowlake",
    "arrowlake-s",
    "lunarlake",
    "pantherlake",
    "sapphirerapids",
    "emeraldrapids",
    "graniterapids",
    "graniterapids-d",
    "diamondrapids",
    "lujiazui",
    "yongfeng",
    "zhaoxin_fam7h",
    "amdfam10h",
    "barcelona",
    "shanghai",
    "istanbul",
    "btver1",
    "btver2",
    "amdfam15h",
    "bdver1",
    "bdver2",
    "bdver3",
    "bdver4",
    "amdfam17h",
    "znver1",
    "znver2",
    "amdfam19h",
    "znver3",
    "znver4",
    "amdfam1ah",
    "znver5",
];

/// Runs the compiler on a source that it reads from its input.
fn compile(arguments: &[&str], source: &str) -> Output {
    let name = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let mut compiler = Command::new(&name);
    compiler.args(arguments).args(["-x", "c", "-"]).env("LC_ALL", "C");
    let pipes = compiler.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.spawn().unwrap_or_else(|error| panic!("the C compiler {name:?}: {error}"));
    child.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// Compiles `source` to a static program at `to`, with a line for each name that the compiler knows in place of its
/// `/* NAMES */`; those names.
pub fn program_of_names(source: &str, to: &Path) -> Vec<&'static str> {
    let (before, after) = source.split_once("/* NAMES */\n").expect("the place of the names");
    let with = |names: &[&str]| {
        let lines: String = names
            .iter()
            .map(|name| format!("    if (__builtin_cpu_is(\"{name}\")) puts(\"NAME {name}\");\n"))
            .collect();
        format!("{before}{lines}{after}")
    };
    // What a compiler does not know is an error in its line.
    let first = before.lines().count() + 1;
    let probe = compile(&["-S", "-o", "/dev/null"], &with(NAMES));
    let errors = String::from_utf8_lossy(&probe.stderr);
    let place = |line: &str| line.strip_prefix("<stdin>:")?.split(':').next()?.parse::<usize>().ok();
    let wrong: BTreeSet<_> =
        errors.lines().filter(|line| line.contains("error:")).filter_map(place).collect();
    let known = |(i, name): (usize, &&'static str)| (!wrong.contains(&(first + i))).then_some(*name);
    let names: Vec<_> = NAMES.iter().enumerate().filter_map(known).collect();
    let to = to.to_str().expect("a path in UTF-8");
    let output = compile(&["-O3", "-static", "-o", to], &with(&names));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    names
}

/// What the compiler takes for granted of the processor called `name` beyond the baseline: its macros, such as
/// `__SSE4_2__`. Nothing if it is no processor but a vendor or a family.
pub fn promises(name: &str) -> BTreeSet<String> {
    let macros = |processor: &str| {
        let output = compile(&[&format!("-march={processor}"), "-dM", "-E"], "");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let names = text.lines().filter_map(|line| line.split_whitespace().nth(1));
        output.status.success().then(|| names.map(str::to_owned).collect::<BTreeSet<_>>())
    };
    let baseline = macros("x86-64").expect("the baseline");
    macros(name).map_or_else(BTreeSet::new, |all| all.difference(&baseline).cloned().collect())
}
