//! Loads and stores: soft TLB first, page walk behind it, RAM or the bus at the end.
//!
//! How RAM itself is read and written is in `host_memory.rs`.
#![allow(unsafe_code)] // guest RAM is reached through host pointers that the TLB and the memory map hand out

use std::sync::atomic::Ordering;

use accel_api::{PAGE_SIZE, PageFlag};

use crate::alu::{Word, flag};
use crate::mode::Mode;
use crate::{
    AccessKind, Cpu, Exec, Fault, StaleCode, TlbMode, Translation, host_cmpxchg, host_load, host_read,
    host_store, host_write, lines,
};

/// Bytes of a cache line, in which the host's own instructions are atomic.
const LINE: u64 = 64;

/// A linear address about to be accessed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ea {
    /// Linear address.
    pub la: u64,
    /// Formed with SS: a non-canonical address is #SS(0), not #GP(0).
    pub stack: bool,
}

impl Ea {
    /// A data address.
    #[inline(always)]
    pub const fn data(la: u64) -> Self {
        Self { la, stack: false }
    }

    /// The address `bytes` further on.
    #[inline(always)]
    pub const fn plus(self, bytes: u64) -> Self {
        Self { la: self.la.wrapping_add(bytes), stack: self.stack }
    }
}

/// A piece of one RAM page, from an address to the page's end.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Host address.
    pub host: *mut u8,
    /// Bytes up to the end of the page; at least 1.
    pub len: usize,
    /// RAM page index.
    pub page: usize,
}

/// Where a checked access leads.
#[derive(Clone, Copy, Debug)]
enum Target {
    Ram(Span),
    /// Guest-physical address without RAM (or a store to ROM).
    Bus(u64),
}

impl Cpu {
    /// Loads a datum.
    ///
    /// # Errors
    /// #PF, #GP or #SS.
    #[inline(always)]
    pub fn load<W: Word>(&mut self, ea: Ea) -> Exec<W> {
        let entry = self.data_entry(ea.la);
        if ea.la ^ entry.read_tag <= PAGE_SIZE - W::BYTES as u64 {
            let host = ea.la.wrapping_add(entry.addend) as *const u8;
            // SAFETY: the entry maps the whole page to RAM that lives as long as the memory map.
            return Ok(unsafe { host_load(host) });
        }
        self.load_slow(ea)
    }

    /// Stores a datum.
    ///
    /// # Errors
    /// #PF, #GP or #SS; nothing is written then.
    #[inline(always)]
    pub fn store<W: Word>(&mut self, ea: Ea, value: W) -> Exec {
        let entry = self.data_entry(ea.la);
        if ea.la ^ entry.write_tag <= PAGE_SIZE - W::BYTES as u64 {
            let host = ea.la.wrapping_add(entry.addend) as *mut u8;
            // SAFETY: as in `load`; a write tag stands only for writable RAM.
            unsafe { host_store(host, value) };
            return Ok(());
        }
        self.store_slow(ea, value)
    }

    #[cold]
    #[inline(never)]
    fn load_slow<W: Word>(&mut self, ea: Ea) -> Exec<W> {
        let mut bytes = [0; 8];
        self.load_bytes(ea, &mut bytes[..W::BYTES])?;
        Ok(W::from_u64(u64::from_le_bytes(bytes)))
    }

    #[cold]
    #[inline(never)]
    fn store_slow<W: Word>(&mut self, ea: Ea, value: W) -> Exec {
        self.store_bytes(ea, &value.to_u64().to_le_bytes()[..W::BYTES])
    }

    /// Reads, computes and writes back one datum; atomically when `lock` (ADR 15). The page must be writable even if `op`
    /// fails. `op` may run more than once; it returns the new value and what to hand to the caller.
    ///
    /// # Errors
    /// #PF, #GP or #SS, or what `op` returns; nothing is written then.
    #[inline(always)]
    pub fn rmw<W: Word, R>(&mut self, ea: Ea, lock: bool, mut op: impl FnMut(W) -> Exec<(W, R)>) -> Exec<R> {
        // Hosts may forbid locked accesses across lines.
        let split = lock && ea.la % LINE > LINE - W::BYTES as u64;
        let entry = self.data_entry(ea.la);
        if !split && ea.la ^ entry.write_tag <= PAGE_SIZE - W::BYTES as u64 {
            let host = ea.la.wrapping_add(entry.addend) as *mut u8;
            // SAFETY: as in `store`.
            return unsafe { rmw_host(host, lock, op) };
        }
        if !split && let Some(span) = self.span(ea, W::BYTES, AccessKind::Write)? {
            // SAFETY: `span` covers W::BYTES bytes of writable RAM.
            let result = unsafe { rmw_host(span.host, lock, op) };
            self.wrote(span, W::BYTES);
            return result;
        }
        let mut access = |cpu: &mut Self| {
            cpu.probe_write(ea, W::BYTES)?;
            let (new, result) = op(cpu.load_slow(ea)?)?;
            cpu.store_slow(ea, new)?;
            Ok(result)
        };
        if lock { self.alone(access) } else { access(self) }
    }

    /// Loads up to a few hundred bytes.
    ///
    /// # Errors
    /// #PF, #GP or #SS.
    pub fn load_bytes(&mut self, ea: Ea, bytes: &mut [u8]) -> Exec {
        self.check_access(ea, bytes.len(), Some(AccessKind::Read))?;
        let mode = self.tlb_mode();
        self.load_bytes_as(mode, ea, bytes)
    }

    /// Stores up to a page; all pages touched are checked before the first byte is written.
    ///
    /// # Errors
    /// #PF, #GP or #SS; nothing is written then.
    pub fn store_bytes(&mut self, ea: Ea, bytes: &[u8]) -> Exec {
        self.check_access(ea, bytes.len(), Some(AccessKind::Write))?;
        let mode = self.tlb_mode();
        self.store_bytes_as(mode, ea, bytes)
    }

    /// Loads as the processor itself does from descriptor tables and task state, whatever the CPL
    /// (Intel SDM vol. 3, 4.6.1, implicit supervisor-mode accesses).
    ///
    /// # Errors
    /// #PF or #GP.
    #[inline]
    pub fn system_load<W: Word>(&mut self, la: u64) -> Exec<W> {
        let mode = self.system_mode();
        let entry = self.tlb.entry(mode, la);
        if la ^ entry.read_tag <= PAGE_SIZE - W::BYTES as u64 {
            // SAFETY: as in `load`.
            return Ok(unsafe { host_load(la.wrapping_add(entry.addend) as *const u8) });
        }
        let mut bytes = [0; 8];
        self.load_bytes_as(mode, Ea::data(la), &mut bytes[..W::BYTES])?;
        Ok(W::from_u64(u64::from_le_bytes(bytes)))
    }

    /// Stores as [`Self::system_load`] loads.
    ///
    /// # Errors
    /// #PF or #GP; nothing is written then.
    pub fn system_store<W: Word>(&mut self, la: u64, value: W) -> Exec {
        self.store_bytes_as(self.system_mode(), Ea::data(la), &value.to_u64().to_le_bytes()[..W::BYTES])
    }

    /// Loads several bytes as [`Self::system_load`] does.
    ///
    /// # Errors
    /// #PF or #GP.
    pub(crate) fn system_load_bytes(&mut self, la: u64, bytes: &mut [u8]) -> Exec {
        self.load_bytes_as(self.system_mode(), Ea::data(la), bytes)
    }

    /// Stores several bytes as [`Self::system_load`] loads.
    ///
    /// # Errors
    /// #PF or #GP; nothing is written then.
    pub(crate) fn system_store_bytes(&mut self, la: u64, bytes: &[u8]) -> Exec {
        self.store_bytes_as(self.system_mode(), Ea::data(la), bytes)
    }

    /// Changes one byte of a descriptor table as the processor does to mark segments accessed and tasks busy: locked,
    /// whatever the CPL. `op` may run more than once. Returns what was there.
    ///
    /// # Errors
    /// #PF or #GP; nothing is written then.
    pub fn system_update(&mut self, la: u64, op: impl Fn(u8) -> u8) -> Exec<u8> {
        match self.target(self.system_mode(), Ea::data(la), AccessKind::Write)? {
            Target::Ram(span) => {
                self.about_to_write(span.page, span.host, 1);
                // SAFETY: the span covers at least one byte of writable RAM.
                let old = unsafe { rmw_host(span.host, true, |old: u8| Ok((op(old), old)))? };
                self.wrote(span, 1);
                Ok(old)
            }
            Target::Bus(gpa) => {
                // What cannot be written may be ROM, which can be read.
                let mut byte = [0];
                self.load_bytes_as(self.system_mode(), Ea::data(la), &mut byte)?;
                self.bus_write(gpa, &[op(byte[0])]);
                Ok(byte[0])
            }
        }
    }

    /// Stores with the privilege of `cpl`, for stacks of a level not yet entered.
    ///
    /// # Errors
    /// #PF, #GP or #SS; nothing is written then.
    pub fn store_bytes_at_cpl(&mut self, cpl: u8, ea: Ea, bytes: &[u8]) -> Exec {
        let mode = if cpl == 3 { TlbMode::User } else { self.supervisor_mode() };
        self.store_bytes_as(mode, ea, bytes)
    }

    /// Checks that `len` bytes may be written, without writing.
    ///
    /// # Errors
    /// #PF, #GP or #SS.
    pub fn probe_write(&mut self, ea: Ea, len: usize) -> Exec {
        self.check_access(ea, len, None)?;
        self.check_end(ea, len)?;
        let mode = self.tlb_mode();
        for_pieces(ea, len, |piece, _| self.target(mode, piece, AccessKind::Write).map(|_| ()))
    }

    /// The RAM at `ea` if all of `len` bytes lie in one page of it, checked for `kind`; `None` when they cross a page or
    /// there is no RAM. Whoever writes through it must call [`Self::wrote`] behind it, and [`Self::about_to_write`] before
    /// if it is more than `len` bytes.
    ///
    /// # Errors
    /// #PF, #GP or #SS for the first byte.
    pub fn span(&mut self, ea: Ea, len: usize, kind: AccessKind) -> Exec<Option<Span>> {
        self.check_access(ea, len, Some(kind))?;
        self.check_end(ea, len)?;
        let mode = self.tlb_mode();
        match self.target(mode, ea, kind)? {
            Target::Ram(span) if span.len >= len => {
                if kind == AccessKind::Write {
                    self.about_to_write(span.page, span.host, len);
                }
                Ok(Some(span))
            }
            _ => Ok(None),
        }
    }

    /// Tells that `len` bytes at the start of `span` were written.
    #[inline(always)]
    pub fn wrote(&mut self, span: Span, len: usize) {
        if self.may_be_code(span.page) {
            self.wrote_code(span.page, PAGE_SIZE as usize - span.len, len);
        }
    }

    /// Whether somebody may hold decoded code of RAM page `page`: it is marked; or that has just ended, and this vCPU, which
    /// has not been told yet, may be executing it.
    #[inline(always)]
    fn may_be_code(&self, page: usize) -> bool {
        self.vm.flags.get(page).contains(PageFlag::CODE) || self.vm.forgot_since(self.told)
    }

    #[cold]
    fn wrote_code(&mut self, page: usize, offset: usize, len: usize) {
        self.vm.code_writes.fetch_add(1, Ordering::SeqCst);
        let lines = lines(offset, len);
        let known = self.vm.code.get(page) & lines != 0;
        // Lines that somebody else's store has just made unknown may be decoded here still: our own store must be seen by
        // our next instruction.
        if (known || self.vm.forgot_since(self.told)) && !self.on_trial() {
            let stale = StaleCode { page, lines };
            if known {
                let before = self.vm.code_stale(stale, Some(self.id as usize));
                // What we forget ourselves nobody has to tell us.
                self.told += u64::from(before == self.told);
            }
            self.stale_code.push(stale);
            self.leave = true;
        }
    }

    fn system_mode(&self) -> TlbMode {
        if self.cr4 & crate::mode::bits::CR4_SMAP != 0 {
            TlbMode::SupervisorOnly
        } else {
            TlbMode::Supervisor
        }
    }

    /// How a stack of an inner level is written. AC suspends SMAP only for who could have set it with STAC: at CPL 3 the
    /// flag is the program's own, and means alignment checks.
    fn supervisor_mode(&self) -> TlbMode {
        if self.cpl < 3 && self.has(flag::AC) { TlbMode::Supervisor } else { self.system_mode() }
    }

    /// Whether the last byte of an access is canonical is known before any of its pages is looked up.
    pub(crate) fn check_end(&self, ea: Ea, len: usize) -> Exec {
        let last = ea.plus((len as u64).saturating_sub(1));
        if self.mode == Mode::Long && !Self::canonical(last.la) {
            return Err(if ea.stack { Fault::SS0 } else { Fault::GP0 });
        }
        Ok(())
    }

    fn load_bytes_as(&mut self, mode: TlbMode, ea: Ea, bytes: &mut [u8]) -> Exec {
        self.check_end(ea, bytes.len())?;
        for_pieces(ea, bytes.len(), |piece, range| {
            let out = &mut bytes[range];
            match self.target(mode, piece, AccessKind::Read)? {
                // SAFETY: the span covers `out.len()` bytes of RAM, which `for_pieces` keeps within the page.
                Target::Ram(span) => unsafe { host_read(span.host, out) },
                Target::Bus(gpa) => self.bus_read(gpa, out),
            }
            Ok(())
        })
    }

    #[inline]
    fn store_bytes_as(&mut self, mode: TlbMode, ea: Ea, bytes: &[u8]) -> Exec {
        let entry = self.tlb.entry(mode, ea.la);
        if (ea.la ^ entry.write_tag).checked_add(bytes.len() as u64).is_some_and(|end| end <= PAGE_SIZE) {
            let (host, page) = (ea.la.wrapping_add(entry.addend) as *mut u8, entry.page as usize);
            self.about_to_write(page, host, bytes.len());
            // SAFETY: a write tag stands for a whole page of writable RAM, and the bytes end in it.
            unsafe { host_write(host, bytes) };
            return Ok(());
        }
        self.store_bytes_slowly(mode, ea, bytes)
    }

    #[inline(never)]
    fn store_bytes_slowly(&mut self, mode: TlbMode, ea: Ea, bytes: &[u8]) -> Exec {
        self.check_end(ea, bytes.len())?;
        if (ea.la & (PAGE_SIZE - 1)) as usize + bytes.len() > PAGE_SIZE as usize {
            for_pieces(ea, bytes.len(), |piece, _| self.target(mode, piece, AccessKind::Write).map(|_| ()))?;
        }
        for_pieces(ea, bytes.len(), |piece, range| {
            let data = &bytes[range];
            match self.target(mode, piece, AccessKind::Write)? {
                Target::Ram(span) => {
                    self.about_to_write(span.page, span.host, data.len());
                    // SAFETY: the span covers `data.len()` bytes of writable RAM.
                    unsafe { host_write(span.host, data) };
                    self.wrote(span, data.len());
                }
                Target::Bus(gpa) => self.bus_write(gpa, data),
            }
            Ok(())
        })
    }

    /// Translates for `kind`, through the TLB if it knows, filling it if not.
    fn target(&mut self, mode: TlbMode, ea: Ea, kind: AccessKind) -> Exec<Target> {
        let offset = (ea.la & (PAGE_SIZE - 1)) as usize;
        let span = |host: u64, page| Span { host: host as *mut u8, len: PAGE_SIZE as usize - offset, page };
        let entry = self.tlb.entry(mode, ea.la);
        let tag = if kind == AccessKind::Write { entry.write_tag } else { entry.read_tag };
        if ea.la ^ tag < PAGE_SIZE {
            return Ok(Target::Ram(span(ea.la.wrapping_add(entry.addend), entry.page as usize)));
        }
        if self.mode == Mode::Long && !Self::canonical(ea.la) {
            return Err(if ea.stack { Fault::SS0 } else { Fault::GP0 });
        }
        // Outside 64-bit mode linear addresses have 32 bits, so those of pieces wrap.
        let la = if self.long_mode() { ea.la } else { ea.la & 0xffff_ffff };
        let walked = self.walk(la, kind, mode == TlbMode::User, mode == TlbMode::Supervisor)?;
        let Some(page) = self.map.page(walked.gpa) else { return Ok(Target::Bus(walked.gpa)) };
        if !page.writable && kind == AccessKind::Write {
            return Ok(Target::Bus(walked.gpa));
        }
        // What is found on trial may be taken back: page tables, too.
        if la == ea.la && self.journal.is_none() {
            let mut store = walked.store && page.writable && !self.may_be_code(page.index);
            if store {
                // The flag is set before the tag, and CODE is looked at again behind it: a decoder sets CODE first
                // and drops tags after, so one of us sees the other.
                store = !self.vm.flags.set(page.index, PageFlag::DIRTY).contains(PageFlag::CODE);
            } else if kind == AccessKind::Write {
                self.vm.flags.set(page.index, PageFlag::DIRTY);
            }
            self.tlb.fill(
                mode,
                la,
                &Translation {
                    host: page.host,
                    page: page.index,
                    store,
                    global: walked.global,
                    large: walked.large,
                },
            );
        }
        Ok(Target::Ram(span(page.host as u64 + offset as u64, page.index)))
    }

    /// Reads a page table entry of `width` bytes. Where there is no RAM it is all ones, as on an empty bus; devices
    /// are not disturbed.
    pub(crate) fn read_table(&self, gpa: u64, width: usize) -> u64 {
        let Some(page) = self.map.page(gpa) else { return u64::MAX >> (64 - 8 * width) };
        let host = page.host.wrapping_add((gpa & (PAGE_SIZE - 1)) as usize);
        // SAFETY: entries are aligned to their width, so they lie within the RAM page found.
        unsafe { if width == 8 { host_load::<u64>(host) } else { u64::from(host_load::<u32>(host)) } }
    }

    /// Replaces a page table entry if it is still `old`.
    pub(crate) fn update_table(&mut self, gpa: u64, width: usize, old: u64, new: u64) -> bool {
        let Some(page) = self.map.page(gpa) else { return true };
        if !page.writable {
            return true;
        }
        let offset = (gpa & (PAGE_SIZE - 1)) as usize;
        let host = page.host.wrapping_add(offset);
        self.about_to_write(page.index, host, width);
        // SAFETY: as in `read_table`.
        let done = unsafe {
            if width == 8 {
                host_cmpxchg::<u64>(host, old, new) == old
            } else {
                host_cmpxchg::<u32>(host, old as u32, new as u32) == old as u32
            }
        };
        if done {
            self.vm.flags.set(page.index, PageFlag::DIRTY);
            self.wrote(Span { host, len: PAGE_SIZE as usize - offset, page: page.index }, width);
        }
        done
    }
}

/// # Safety
/// `host` must be valid for `W::BYTES` bytes.
#[inline(always)]
unsafe fn rmw_host<W: Word, R>(host: *mut u8, lock: bool, mut op: impl FnMut(W) -> Exec<(W, R)>) -> Exec<R> {
    // SAFETY: the caller's promise.
    let mut old: W = unsafe { host_load(host) };
    loop {
        let (new, result) = op(old)?;
        if !lock {
            // SAFETY: the caller's promise.
            unsafe { host_store(host, new) };
            return Ok(result);
        }
        // SAFETY: the caller's promise.
        let seen = unsafe { host_cmpxchg(host, old, new) };
        if seen == old {
            return Ok(result);
        }
        old = seen;
    }
}

/// Calls `each` for the part of `len` bytes in each page, in order, with its address and its range.
fn for_pieces(ea: Ea, len: usize, mut each: impl FnMut(Ea, std::ops::Range<usize>) -> Exec) -> Exec {
    let mut done = 0;
    while done < len {
        let at = ea.plus(done as u64);
        let room = (PAGE_SIZE - (at.la & (PAGE_SIZE - 1))) as usize;
        let end = len.min(done + room);
        each(at, done..end)?;
        done = end;
    }
    Ok(())
}
