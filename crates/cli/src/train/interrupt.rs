//! Interrupts: a run that has begun ends where nothing is lost.

use std::sync::atomic::{AtomicBool, Ordering};

/// Whether one has asked the run to stop.
static STOP: AtomicBool = AtomicBool::new(false);

/// Lets interrupts ask the run to stop, from now on; until then, and where no handler can be set, they end the program.
pub(super) fn listen() {
    ctrlc::set_handler(|| STOP.store(true, Ordering::SeqCst)).ok();
}

/// Whether one has come: whatever takes long looks now and then.
pub(super) fn has_come() -> bool {
    STOP.load(Ordering::SeqCst)
}
