//! MOVS and STOS, with and without repetition, in the forms that the host executes.

use iced_x86::{Code, Instruction, OpKind, Register};

/// A string instruction that the host can execute.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strings {
    pub opcode: u8,
    /// log2 of an element's size.
    pub shift: u8,
    /// MOVS.
    pub source: bool,
    pub repeated: bool,
}

impl Strings {
    pub(crate) fn of(ins: &Instruction) -> Option<Self> {
        let (opcode, shift, source) = match ins.code() {
            Code::Movsb_m8_m8 => (0xa4, 0, true),
            Code::Movsw_m16_m16 => (0xa5, 1, true),
            Code::Movsd_m32_m32 => (0xa5, 2, true),
            Code::Movsq_m64_m64 => (0xa5, 3, true),
            Code::Stosb_m8_AL => (0xaa, 0, false),
            Code::Stosw_m16_AX => (0xab, 1, false),
            Code::Stosd_m32_EAX => (0xab, 2, false),
            Code::Stosq_m64_RAX => (0xab, 3, false),
            _ => return None,
        };
        let plain = (0..ins.op_count()).all(|n| match ins.op_kind(n) {
            OpKind::MemorySegRSI => !matches!(ins.memory_segment(), Register::FS | Register::GS),
            kind => matches!(kind, OpKind::MemoryESRDI | OpKind::Register),
        });
        (plain && !ins.has_repne_prefix()).then(|| Self {
            opcode,
            shift,
            source,
            repeated: ins.has_rep_prefix(),
        })
    }
}
