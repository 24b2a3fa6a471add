//! Denormal numbers count as zero while a network runs: they are slow, and mean nothing in it.
#![expect(unsafe_code, reason = "reads and writes the control register of the processor")]

/// While it lives, this thread takes denormal operands for zero and writes zero for denormal results.
pub(crate) struct Flushed {
    before: Control,
}

#[cfg(target_arch = "x86_64")]
type Control = u32;
#[cfg(target_arch = "aarch64")]
type Control = u64;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
type Control = ();

impl Flushed {
    pub(crate) fn new() -> Self {
        let before = read();
        #[cfg(target_arch = "x86_64")]
        // Flush to zero is bit 15, denormals are zero bit 6 of MXCSR.
        write(before | 1 << 15 | 1 << 6);
        #[cfg(target_arch = "aarch64")]
        // Flush to zero is bit 24 of FPCR, for operands too.
        write(before | 1 << 24);
        Self { before }
    }
}

impl Drop for Flushed {
    fn drop(&mut self) {
        write(self.before);
    }
}

#[cfg(target_arch = "x86_64")]
fn read() -> Control {
    let mut control = 0_u32;
    // SAFETY: stores the control register to a number of its size.
    unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut control, options(nostack, preserves_flags)) };
    control
}

#[cfg(target_arch = "x86_64")]
fn write(control: Control) {
    // SAFETY: the number is a control register that was read, with two bits set that every processor of this kind has; no
    // exception is unmasked and rounding stays as it was.
    unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &raw const control, options(nostack, preserves_flags)) };
}

#[cfg(target_arch = "aarch64")]
fn read() -> Control {
    let control: u64;
    // SAFETY: reads a register.
    unsafe { std::arch::asm!("mrs {}, fpcr", out(reg) control, options(nomem, nostack, preserves_flags)) };
    control
}

#[cfg(target_arch = "aarch64")]
fn write(control: Control) {
    // SAFETY: the number is a control register that was read, with the bit set that flushes denormal numbers.
    unsafe { std::arch::asm!("msr fpcr, {}", in(reg) control, options(nomem, nostack, preserves_flags)) };
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn read() -> Control {}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn write(_: Control) {}
