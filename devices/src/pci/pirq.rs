//! How INTx reaches the interrupt controllers (ICH9 datasheet, 5.8.6 and 13.1.17).
//!
//! The four pins of a device go to four of eight wires, PIRQA to PIRQH. Wire n is pin 16 + n of the IOAPIC, always, and an input of
//! the 8259 pair if the LPC bridge's register for it says so. Several functions share a wire, and several wires an input.

use std::sync::{Arc, Mutex};

use super::DeviceFunction;
use crate::IrqLine;
use crate::ioapic::Ioapic;
use crate::shared_line::SharedIrqLine;
use crate::util::lock;

/// Number of wires.
pub const PIRQS: usize = 8;

/// Pin of the IOAPIC that PIRQA is wired to.
const FIRST_PIN: u8 = 16;
/// Register value after reset: the wire does not reach the 8259 pair.
pub(super) const UNROUTED: u8 = 0x80;
/// The inputs of the 8259 pair that a wire may be routed to (13.1.17).
const ROUTABLE: u16 =
    1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 12 | 1 << 14 | 1 << 15;

#[derive(Debug)]
struct State {
    levels: [bool; PIRQS],
    /// The routing registers.
    routes: [u8; PIRQS],
}

impl State {
    /// The input that wire `n` is routed to.
    fn input(&self, n: usize) -> Option<usize> {
        let route = self.routes[n];
        (route < 16 && ROUTABLE & 1 << route != 0).then_some(route.into())
    }
}

#[derive(Debug)]
struct Router {
    state: Mutex<State>,
    ioapic: [Arc<dyn IrqLine>; PIRQS],
    /// An owner's share of each input of the 8259 pair.
    pic: Vec<Arc<dyn IrqLine>>,
}

impl Router {
    fn drive_pic(&self, state: &State) {
        for (input, line) in self.pic.iter().enumerate().filter(|(input, _)| ROUTABLE & 1 << input != 0) {
            line.set((0..PIRQS).any(|n| state.levels[n] && state.input(n) == Some(input)));
        }
    }
}

/// The wires PIRQA to PIRQH.
#[derive(Debug)]
pub struct Pirqs {
    router: Arc<Router>,
    wires: Vec<Arc<SharedIrqLine>>,
}

#[derive(Debug)]
struct Wire {
    router: Arc<Router>,
    n: usize,
}

impl IrqLine for Wire {
    fn set(&self, level: bool) {
        let mut state = lock(&self.router.state);
        state.levels[self.n] = level;
        self.router.ioapic[self.n].set(level);
        if let Some(input) = state.input(self.n)
            && let Some(line) = self.router.pic.get(input)
        {
            line.set((0..PIRQS).any(|n| state.levels[n] && state.input(n) == Some(input)));
        }
    }
}

impl Pirqs {
    /// Wires to pins 16 to 23 of `ioapic`, and to `pic`: a share of each input of the 8259 pair, by number.
    pub fn new(ioapic: &Arc<Ioapic>, pic: Vec<Arc<dyn IrqLine>>) -> Arc<Self> {
        let state = Mutex::new(State { levels: [false; PIRQS], routes: [UNROUTED; PIRQS] });
        let ioapic = std::array::from_fn(|n| ioapic.line(FIRST_PIN + n as u8));
        let router = Arc::new(Router { state, ioapic, pic });
        let wire = |n| SharedIrqLine::new(Arc::new(Wire { router: router.clone(), n }));
        Arc::new(Self { wires: (0..PIRQS).map(wire).collect(), router })
    }

    /// The wire of interrupt pin `pin`, 1 to 4, of a device: those of one device differ, and so do those of neighbours. Devices
    /// from 25 on are the ICH9's own, whose pins are PIRQA to PIRQD (the reset values of its D31IR to D25IR); the others have
    /// PIRQE to PIRQH, as slots on a board.
    pub fn wire(device: u8, pin: u8) -> usize {
        let pin = usize::from(pin.wrapping_sub(1));
        if device >= 25 { pin % 4 } else { 4 + (usize::from(device) + pin) % 4 }
    }

    /// The global system interrupt of wire `n`: its pin at the IOAPIC.
    pub fn gsi(n: usize) -> u8 {
        FIRST_PIN + (n % PIRQS) as u8
    }

    /// A share of the wire that pin `pin` of the function at `at` drives.
    pub(super) fn line(&self, at: DeviceFunction, pin: u8) -> Arc<dyn IrqLine> {
        self.wires[Self::wire(at.device(), pin)].owner()
    }

    /// Takes over the routing registers of the LPC bridge.
    pub(super) fn set_routes(&self, routes: [u8; PIRQS]) {
        let mut state = lock(&self.router.state);
        if state.routes != routes {
            state.routes = routes;
            self.router.drive_pic(&state);
        }
    }
}
