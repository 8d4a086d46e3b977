use super::*;
use crate::oracle::case::{End, Outcome, Raised, State, WINDOW_SIZE};
use crate::oracle::compare::differences;
use crate::oracle::generation::GENERATIONS;
use crate::oracle::segments::{CODE16, CODE64, DATA};

const ZEN_3_HERE: Processor = Processor { vendor: Vendor::Amd, family: 0x19, model: 1 };
const ZEN_4_HERE: Processor = Processor { vendor: Vendor::Amd, family: 0x19, model: 0x11 };
const ZEN_5_HERE: Processor = Processor { vendor: Vendor::Amd, family: 0x1a, model: 2 };
const SKYLAKE_HERE: Processor = Processor { vendor: Vendor::Intel, family: 6, model: 0x5e };
const SAPPHIRE_RAPIDS_HERE: Processor = Processor { vendor: Vendor::Intel, family: 6, model: 0x8f };
const HASWELL_HERE: Processor = Processor { vendor: Vendor::Intel, family: 6, model: 0x3c };
const ZEN_HERE: Processor = Processor { vendor: Vendor::Amd, family: 0x17, model: 1 };

fn case(bytes: &[u8], cs: u16, gpr: &[(usize, u64)]) -> Case {
    let mut state = State::with_selectors([DATA, cs, DATA, DATA, 0, DATA]);
    for &(number, value) in gpr {
        state.gpr[number] = value;
    }
    Case { bytes: bytes.to_vec(), state, memory: vec![0; WINDOW_SIZE] }
}

fn fault(vector: u8, error: u32, address: u64) -> End {
    End::Fault(Raised { vector, error, address })
}

/// What is said of `case` on `processor` when host and software CPU end like this.
fn said(processor: Processor, case: &Case, native: End, soft: End) -> Option<String> {
    said_of(processor, case, native, soft, |_| {})
}

fn said_of(
    processor: Processor,
    case: &Case,
    native: End,
    soft: End,
    on_the_host: impl FnOnce(&mut Outcome),
) -> Option<String> {
    let ins = case.decode();
    let outcome = |end| Outcome { end, state: case.state.clone(), memory: case.memory.clone() };
    let (mut native, soft) = (outcome(native), outcome(soft));
    on_the_host(&mut native);
    let found = differences(&ins, case, &native, &soft);
    assert!(!found.is_empty());
    let finished = native.end == End::Done && soft.end == End::Done;
    known(&processor, &Situation { ins: &ins, case, found: &found, finished })
        .map(|reasons| reasons.join("; "))
}

#[test]
fn elements_of_masked_moves_wrap_on_zen_3_and_4_alone() {
    // vmaskmovpd ymm1, ymm1, [bx+di]: at FFFEh of 16 bits, the second element wraps.
    let load = |bx, di| case(&[0xc4, 0xe2, 0x75, 0x2d, 0x09], CODE16, &[(3, bx), (7, di)]);
    let (native, soft) = (fault(14, 4, 0xe), fault(14, 4, 0x1_000e));
    let wraps = load(0xfbfe, 0x400);
    let said_so = said(ZEN_3_HERE, &wraps, native.clone(), soft.clone()).unwrap();
    assert!(said_so.contains("wrap at the address size"), "{said_so}");
    assert_eq!(said(ZEN_4_HERE, &wraps, native.clone(), soft.clone()), Some(said_so));
    for other in [ZEN_5_HERE, SKYLAKE_HERE, ZEN_HERE] {
        assert_eq!(said(other, &wraps, native.clone(), soft.clone()), None, "{other}");
    }
    // The host may as well find nothing, or the segment's limit.
    assert!(said(ZEN_3_HERE, &wraps, End::Done, fault(12, 0, 0)).is_some());
    assert!(said(ZEN_3_HERE, &wraps, fault(13, 0, 0), soft.clone()).is_some());
    // But no page that the operand has no part in.
    assert_eq!(said(ZEN_3_HERE, &wraps, fault(14, 4, 0x20), soft.clone()), None);
    // And nothing but that if the operand ends at the highest address, or is another instruction's.
    assert_eq!(said(ZEN_3_HERE, &load(0xfbe0, 0x400), native.clone(), soft.clone()), None);
    let plain = case(&[0xc5, 0xfd, 0x10, 0x09], CODE16, &[(3, 0xfbfe), (7, 0x400)]);
    assert_eq!(said(ZEN_3_HERE, &plain, native, soft), None);
    // vpmaskmovd [eax+r12d*2+4001B77Bh], xmm2, xmm2: 32 bits of address in 64-bit mode; without the prefix it is 64.
    let bytes = [0x67, 0xc4, 0xa2, 0x69, 0x8e, 0x94, 0x60, 0x7b, 0xb7, 0x01, 0x40];
    let gpr = [(0, 0xd50c_4b5a), (12, 0x2e_f578_fe92)];
    let (native, soft) = (fault(14, 6, 1), fault(14, 6, 0x1_0000_0001));
    assert!(said(ZEN_3_HERE, &case(&bytes, CODE64, &gpr), native.clone(), soft.clone()).is_some());
    assert_eq!(said(ZEN_3_HERE, &case(&bytes[1..], CODE64, &gpr), native, soft), None);
}

#[test]
fn far_calls_to_another_width_push_there_on_amd() {
    // call word far [20000000h] with the selector of 64-bit code, or of 32-bit code.
    let call = |selector: u8| {
        let mut call = case(&[0x66, 0xff, 0x1d, 0, 0, 0, 0x20], 0x23, &[(4, 0x1_0000)]);
        call.state.selectors[2] = 0xf;
        call.memory[2] = selector;
        call
    };
    let (native, soft) = (fault(14, 6, 0xfffe), fault(12, 0, 0));
    let said_so = said(ZEN_3_HERE, &call(0x32), native.clone(), soft.clone()).unwrap();
    assert!(said_so.contains("as the mode it comes to has it"), "{said_so}");
    assert!(said(ZEN_5_HERE, &call(0x33), End::Hang, soft.clone()).is_some());
    assert_eq!(said(ZEN_5_HERE, &call(0x23), End::Hang, soft.clone()), None);
    assert_eq!(said(SAPPHIRE_RAPIDS_HERE, &call(0x33), End::Hang, soft), None);
}

#[test]
fn everything_that_differs_wants_its_reason() {
    // call 7:2724h: target and stack fault, and AMD has pushed already.
    let call = case(&[0x9a, 0x24, 0x27, 0x07, 0x00], CODE16, &[]);
    let (native, soft) = (fault(12, 0, 0), fault(13, 0, 0));
    let pushed = |outcome: &mut Outcome| outcome.memory[0] = 1;
    let said_so = said_of(ZEN_3_HERE, &call, native.clone(), soft.clone(), pushed).unwrap();
    assert!(said_so.contains("which is first") && said_so.contains("has pushed"), "{said_so}");
    assert_eq!(said_of(SKYLAKE_HERE, &call, native.clone(), soft.clone(), pushed), None);
    assert!(said(SKYLAKE_HERE, &call, native.clone(), soft.clone()).is_some());
    let register = |outcome: &mut Outcome| outcome.state.gpr[0] = 1;
    assert_eq!(said_of(ZEN_3_HERE, &call, native, soft, register), None);
}

#[test]
fn errata_hold_where_they_are_documented() {
    let undefined = || fault(6, 0, 0);
    // vcvtss2si eax, xmm0 with VEX.L; movbe rax, [rbx] with 66H.
    for (bytes, hosts) in [
        (&[0xc5, 0xfe, 0x2d, 0xc0][..], &[HASWELL_HERE][..]),
        (&[0x66, 0x48, 0x0f, 0x38, 0xf0, 0x03], &[HASWELL_HERE, SKYLAKE_HERE]),
    ] {
        let case = case(bytes, CODE64, &[]);
        assert!(!case.decode().is_invalid());
        for host in [HASWELL_HERE, SKYLAKE_HERE, SAPPHIRE_RAPIDS_HERE, ZEN_3_HERE] {
            let said_so = said(host, &case, undefined(), End::Done);
            assert_eq!(said_so.is_some(), hosts.contains(&host), "{host}: {said_so:?}");
        }
    }
    // vcvtps2ph [rbx], xmm0, 0
    let store = case(&[0xc4, 0xe3, 0x79, 0x1d, 0x03, 0x00], CODE64, &[]);
    let flags = |outcome: &mut Outcome| outcome.state.fpu.mxcsr |= 0x20;
    for (host, is_so) in [(SKYLAKE_HERE, true), (SAPPHIRE_RAPIDS_HERE, false), (ZEN_3_HERE, false)] {
        let said_so = said_of(host, &store, fault(14, 6, 0), fault(14, 6, 0), flags);
        assert_eq!(said_so.is_some(), is_so, "{host}: {said_so:?}");
    }
    // mov [rbx], eax
    let store = case(&[0x89, 0x03], CODE64, &[]);
    for (host, error, address, is_so) in [
        (ZEN_HERE, 6, 0x1_0fc0, true),
        (ZEN_HERE, 7, 0x1_0fc0, false),
        (ZEN_HERE, 6, 0x1_1000, false),
        (ZEN_3_HERE, 6, 0x1_0fc0, false),
    ] {
        let said_so = said(host, &store, fault(14, error, address), fault(14, 6, 0x1_0fbe));
        assert_eq!(said_so.is_some(), is_so, "{host}: {said_so:?}");
    }
}

#[test]
fn entries_have_names_of_their_own() {
    for (i, known) in KNOWN.iter().enumerate() {
        assert!(KNOWN[..i].iter().all(|other| other.reason != known.reason), "{}", known.reason);
        if let Who::Born(generations) = known.who {
            assert!(generations.iter().all(|g| GENERATIONS.iter().any(|all| std::ptr::eq(*g, *all))));
        }
    }
}

/// KUNPCKBW k3, k0, k6 is VEX.66.0F.4B: one bit of the map from VBLENDVPD.
#[test]
fn hosts_with_avx512_have_opmask_instructions() {
    let unpack = case(&[0xc4, 0xc1, 0x3d, 0x4b, 0xde, 0x20], CODE64, &[]);
    let undefined = || fault(6, 0, 0);
    for host in [ZEN_5_HERE, SAPPHIRE_RAPIDS_HERE] {
        let said_so = said(host, &unpack, End::Done, undefined()).unwrap();
        assert!(said_so.contains("opmask"), "{said_so}");
        assert_eq!(said(host, &unpack, undefined(), End::Done), None, "the software CPU must not have them");
    }
    let blend = case(&[0xc4, 0xc3, 0x3d, 0x4b, 0xde, 0x20], CODE64, &[]);
    assert_eq!(said(ZEN_5_HERE, &blend, End::Done, undefined()), None);
}
