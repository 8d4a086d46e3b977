//! Values of registers throughout a block: each is a value that some register had at the block's start or after an
//! instruction, plus a constant.

use iced_x86::{Code, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};

use super::classify::Action;
use super::step::{RBP, RSP, Step, full};

/// A value that is not known, plus a constant.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Value {
    pub unknown: u32,
    pub plus: i32,
}

impl Value {
    /// The new value of register number `r` after an instruction, the one with number `fresh`, counted from 1.
    fn new(fresh: u32, r: usize) -> Self {
        Self { unknown: 32 + fresh * 20 + r as u32, plus: 0 }
    }

    /// The register that came to hold it.
    pub(crate) fn home(unknown: u32) -> usize {
        if unknown < 32 { unknown as usize } else { ((unknown - 32) % 20) as usize }
    }
}

/// Of the general registers, the page, and zero.
pub(crate) fn first_values() -> [Value; 18] {
    std::array::from_fn(|n| Value { unknown: n as u32, plus: 0 })
}

/// Changes the values of the registers to those after `step`.
pub(crate) fn follow(values: &mut [Value; 18], step: &Step, fresh: u32, info: &mut InstructionInfoFactory) {
    let ins = &step.ins;
    let add = |value: &mut Value, n: i64, fresh: u32| match i32::try_from(i64::from(value.plus) + n) {
        Ok(plus) => value.plus = plus,
        Err(_) => *value = Value::new(fresh, 19),
    };
    let rsp = RSP as usize;
    match step.action {
        Action::Push => return add(&mut values[rsp], -8, fresh),
        Action::System if ins.code() == Code::Pushfq => return add(&mut values[rsp], -8, fresh),
        Action::Call | Action::CallIndirect => return add(&mut values[rsp], -8, fresh),
        Action::Return => {
            let release = if ins.op_count() > 0 { i64::from(ins.immediate16()) } else { 0 };
            return add(&mut values[rsp], 8 + release, fresh);
        }
        Action::Pop => {
            add(&mut values[rsp], 8, fresh);
            let to = full(ins.op0_register());
            values[to as usize] = Value::new(fresh, to.into());
            return;
        }
        Action::Leave => {
            values[rsp] = values[RBP as usize];
            values[RBP as usize] = Value::new(fresh, RBP.into());
            return add(&mut values[rsp], 8, fresh);
        }
        Action::Copy => {
            let (to, wide) = (ins.op0_register(), ins.op0_register().is_gpr64());
            let n = to.number();
            match ins.mnemonic() {
                Mnemonic::Lea if wide && ins.memory_index() == Register::None && ins.memory_base() == to => {
                    return add(&mut values[n], ins.memory_displacement64() as i64, fresh);
                }
                Mnemonic::Lea
                    if wide && ins.memory_index() == Register::None && ins.memory_base().is_gpr64() =>
                {
                    values[n] = values[ins.memory_base().number()];
                    return add(&mut values[n], ins.memory_displacement64() as i64, fresh);
                }
                Mnemonic::Add if wide && ins.op1_kind() != OpKind::Register => {
                    return add(&mut values[n], ins.immediate(1) as i64, fresh);
                }
                Mnemonic::Sub if wide && ins.op1_kind() != OpKind::Register => {
                    return add(&mut values[n], (ins.immediate(1) as i64).wrapping_neg(), fresh);
                }
                Mnemonic::Inc if wide => return add(&mut values[n], 1, fresh),
                Mnemonic::Dec if wide => return add(&mut values[n], -1, fresh),
                Mnemonic::Mov if wide && ins.op1_register().is_gpr64() => {
                    values[n] = values[ins.op1_register().number()];
                    return;
                }
                Mnemonic::Cmp | Mnemonic::Test => return,
                _ => {}
            }
        }
        _ => {}
    }
    let info = info.info(ins);
    for used in info.used_registers() {
        let register = used.register();
        if register.is_gpr() && !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None)
        {
            let n = full(register);
            values[n as usize] = Value::new(fresh, n.into());
        }
    }
}
