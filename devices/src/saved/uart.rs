//! Saved type of the serial port.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use state::{RestoreError, Saved, check};

use crate::uart::{BACKLOG, FCR_KEPT, FIFO, UartState};

/// The fields are those of [`UartState`].
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedUart {
    divisor: u16,
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    msr: u8,
    scr: u8,
    mcr_touched: bool,
    overrun: bool,
    thr_empty: bool,
    rx: VecDeque<u8>,
    backlog: VecDeque<u8>,
}

impl Saved for SavedUart {
    const VERSION: u32 = 1;
}

impl From<&UartState> for SavedUart {
    fn from(state: &UartState) -> Self {
        let UartState { divisor, ier, fcr, lcr, mcr, msr, scr, mcr_touched, overrun, thr_empty, rx, backlog } =
            state;
        Self {
            divisor: *divisor,
            ier: *ier,
            fcr: *fcr,
            lcr: *lcr,
            mcr: *mcr,
            msr: *msr,
            scr: *scr,
            mcr_touched: *mcr_touched,
            overrun: *overrun,
            thr_empty: *thr_empty,
            rx: rx.clone(),
            backlog: backlog.clone(),
        }
    }
}

impl TryFrom<SavedUart> for UartState {
    type Error = RestoreError;

    fn try_from(saved: SavedUart) -> Result<Self, RestoreError> {
        let SavedUart { divisor, ier, fcr, lcr, mcr, msr, scr, mcr_touched, overrun, thr_empty, rx, backlog } =
            saved;
        check(ier < 0x10, "ier", ier, "below 16")?;
        check(mcr < 0x20, "mcr", mcr, "below 32")?;
        check(fcr & !FCR_KEPT == 0, "fcr", fcr, format_args!("within {FCR_KEPT:#x}"))?;
        check(rx.len() <= FIFO, "rx", rx.len(), format_args!("at most {FIFO} bytes"))?;
        let most = BACKLOG + FIFO;
        check(backlog.len() <= most, "backlog", backlog.len(), format_args!("at most {most} bytes"))?;
        Ok(Self { divisor, ier, fcr, lcr, mcr, msr, scr, mcr_touched, overrun, thr_empty, rx, backlog })
    }
}
