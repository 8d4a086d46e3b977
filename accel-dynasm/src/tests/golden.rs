//! Golden tests: small pieces of guest code, and the host code and metadata that they become.
//!
//! Each file of `tests/golden` is one piece. A comment says what it is there for, settings say what it is translated
//! for, and guest code is given as bytes. What follows is written by the test itself: instructions beside the bytes,
//! then the host code with names in the place of addresses, so that it is the same in every process and on every host.
//! A change of generated code shows as a change of these files: `GOLDEN_BLESS=1 cargo test -p accel-dynasm golden`
//! writes them anew.

mod print;
mod stubs;

use std::path::{Path, PathBuf};

use accel_api::x86::CpuModel;
use iced_x86::Decoder;
use x86_core::{DECODER_OPTIONS, TlbMode};

use self::print::{Names, listing};
use crate::block_mode::BlockMode;
use crate::translate::Translator;
use crate::translate::output::{Outcome, Output};
use crate::translate::plan::classify::Classifier;
use crate::translate::plan::lazy_flags::LazyFlags;
use crate::translate::source::{Options, Source};

const BLESS: &str = "GOLDEN_BLESS";
const PAGE: usize = 4096;

/// What a piece is translated for; each line of settings changes one.
struct Settings {
    tlb: TlbMode,
    vectors: bool,
    /// Linear address of the first instruction.
    address: u64,
    bmi2: bool,
    /// The guest's model.
    model: String,
    counting: bool,
    ungrouped: bool,
    /// Offsets in the page of accesses that are to have no inline TLB entry.
    excluded: Vec<u16>,
    /// A stub of the runtime instead of guest code.
    stub: Option<String>,
}

impl Settings {
    fn new() -> Self {
        Self {
            tlb: TlbMode::Supervisor,
            vectors: false,
            address: 0xffff_ffff_8100_0000,
            bmi2: true,
            model: "x86-64-v3".to_owned(),
            counting: false,
            ungrouped: false,
            excluded: Vec::new(),
            stub: None,
        }
    }

    fn set(&mut self, key: &str, value: &str) {
        match (key, value) {
            ("privilege", "kernel") => self.tlb = TlbMode::Supervisor,
            ("privilege", "kernel, SMAP") => self.tlb = TlbMode::SupervisorOnly,
            ("privilege", "user") => (self.tlb, self.address) = (TlbMode::User, 0x40_1000),
            ("address", value) => self.address = hex(value),
            ("vectors", "yes") => self.vectors = true,
            ("bmi2", "no") => self.bmi2 = false,
            ("model", value) => self.model = value.to_owned(),
            ("counting", "yes") => self.counting = true,
            ("grouped", "no") => self.ungrouped = true,
            ("no inline tlb", value) => self.excluded = value.split(' ').map(|n| hex(n) as u16).collect(),
            ("stub", value) => self.stub = Some(value.to_owned()),
            _ => panic!("no setting is {key}: {value}"),
        }
    }
}

fn hex(text: &str) -> u64 {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap_or_else(|_| panic!("{text} is no number"))
}

/// One file, as its author wrote it.
struct Piece {
    /// All lines before the guest code.
    head: String,
    settings: Settings,
    /// Code whose direct jump leads to the piece.
    before: Vec<Vec<u8>>,
    guest: Vec<Vec<u8>>,
}

impl Piece {
    fn parse(text: &str) -> Self {
        let mut piece =
            Self { head: String::new(), settings: Settings::new(), before: Vec::new(), guest: Vec::new() };
        let mut section = "";
        for line in text.lines() {
            match line {
                "before:" | "guest:" | "host:" => section = line,
                _ if line.is_empty() || section == "host:" => {}
                _ if section == "before:" => piece.before.push(bytes(line)),
                _ if section == "guest:" => piece.guest.push(bytes(line)),
                _ => {
                    piece.head += &format!("{line}\n");
                    if let Some((key, value)) = line.split_once(": ").filter(|_| !line.starts_with('#')) {
                        piece.settings.set(key, value);
                    }
                }
            }
        }
        let code = !piece.guest.is_empty() || piece.settings.stub.is_some();
        assert!(code && piece.head.starts_with("# "), "a comment, and guest code or a stub");
        piece
    }

    /// The whole file as it should be.
    fn text(&self) -> String {
        let mut text = format!("{}\n", self.head);
        let names = Names::new(self.settings.tlb);
        if let Some(stub) = &self.settings.stub {
            return text + "host:\n" + &stubs::listing(&names, stub);
        }
        for (name, code) in [("before", &self.before), ("guest", &self.guest)] {
            if !code.is_empty() {
                text += &format!("{name}:\n{}\n", guest_lines(code, self.settings.address));
            }
        }
        let known = (!self.before.is_empty()).then(|| {
            let (_, out) = self.translate(&self.before, None);
            let known = out.jumps.last().expect("a direct jump").known;
            out.recipes[known as usize]
        });
        let (code, out) = self.translate(&self.guest, known);
        text + "host:\n" + &listing(&names, &self.guest.concat(), self.settings.address, &code, &out)
    }

    fn translate(&self, code: &[Vec<u8>], known: Option<LazyFlags>) -> (Vec<u8>, Output) {
        let settings = &self.settings;
        let mode = BlockMode::for_test(settings.tlb, settings.vectors);
        let features = CpuModel::named(&settings.model, 1, 1_000_000_000).expect("a model").features;
        let classifier = Classifier { features, bmi1: features.has(accel_api::x86::Feature::Bmi1), mode };
        let offset = settings.address as usize % PAGE;
        let mut bytes = vec![0xcc; PAGE];
        let guest = code.concat();
        bytes[offset..offset + guest.len()].copy_from_slice(&guest);
        let source = Source {
            bytes: &bytes,
            page: settings.address - offset as u64,
            offset: offset as u16,
            mode,
            ungrouped: settings.ungrouped,
            no_inline_tlb: &settings.excluded,
            known,
        };
        let mut translator = Translator::new(Options { bmi2: settings.bmi2, counting: settings.counting });
        let outcome = translator.translate(&source, &classifier, &print::addresses(), code.len());
        assert_eq!(outcome, Outcome::Done);
        let code = translator.code().expect("it can be assembled");
        (code, std::mem::take(&mut translator.output))
    }
}

/// The bytes at the start of a line; what follows two blanks is for people.
fn bytes(line: &str) -> Vec<u8> {
    let line = line.trim_start();
    let end = line.find("  ").unwrap_or(line.len());
    line[..end].split(' ').map(|byte| hex(byte) as u8).collect()
}

fn guest_lines(code: &[Vec<u8>], mut address: u64) -> String {
    let mut text = String::new();
    for bytes in code {
        let ins = Decoder::with_ip(64, bytes, address, DECODER_OPTIONS).decode();
        assert!(ins.len() == bytes.len(), "{bytes:02x?} is not one instruction");
        let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        text += &format!("  {:<24}  {}\n", hex.join(" "), print::guest_instruction(&ins));
        address += bytes.len() as u64;
    }
    text
}

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    files
}

#[test]
fn golden() {
    let (files, bless) = (files(), std::env::var_os(BLESS).is_some());
    assert!(files.len() >= 15, "{} files", files.len());
    let mut wrong = Vec::new();
    for path in files {
        let text = std::fs::read_to_string(&path).expect("a file");
        let expected = Piece::parse(&text).text();
        if bless {
            std::fs::write(&path, &expected).expect("a file that can be written");
        } else if text != expected {
            let at = text.lines().zip(expected.lines()).take_while(|(a, b)| a == b).count();
            let [was, is] = [&text, &expected].map(|text| text.lines().nth(at).unwrap_or("(the end)"));
            wrong.push(format!("{}:{}\n  was: {was}\n  is:  {is}", path.display(), at + 1));
        }
    }
    assert!(
        wrong.is_empty(),
        "{}\nif the new code is what it should be: {BLESS}=1 cargo test -p accel-dynasm golden",
        wrong.join("\n")
    );
}

/// The comparison sees a change of one instruction.
#[test]
fn a_change_of_code_shows() {
    let piece = |last: &str| Piece::parse(&format!("# A register.\n\nguest:\n  48 ff c0\n  {last}\n")).text();
    let (inc, dec) = (piece("48 ff c1"), piece("48 ff c9"));
    let differ = inc.lines().zip(dec.lines()).filter(|(a, b)| a != b).count();
    assert_eq!((differ, inc.lines().count()), (3, dec.lines().count()), "{inc}\n{dec}");
}
