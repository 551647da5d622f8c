use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

/// The most memory that this process has held, in bytes; 0 where the system does not say so (it does on Linux).
pub fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kilobytes =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
    kilobytes.unwrap_or(0u64) * 1024
}

/// The system's allocator, counting: a test's `#[global_allocator]`. It counts all that the process holds, so that the test is alone in its file.
#[derive(Debug, Default)]
pub struct CountingAllocator {
    held: AtomicUsize,
    most: AtomicUsize,
}

impl CountingAllocator {
    /// One that has handed out nothing.
    pub const fn new() -> Self {
        Self { held: AtomicUsize::new(0), most: AtomicUsize::new(0) }
    }

    /// How many bytes are held now.
    pub fn held(&self) -> usize {
        self.held.load(SeqCst)
    }

    /// What `work` gives, and how many bytes more than before it were held at the same time while it ran.
    pub fn peak_of<T>(&self, work: impl FnOnce() -> T) -> (T, usize) {
        let before = self.held();
        self.most.store(before, SeqCst);
        let result = work();
        (result, self.most.load(SeqCst) - before)
    }
}

// SAFETY: all memory is the system allocator's.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = self.held.fetch_add(layout.size(), SeqCst) + layout.size();
        self.most.fetch_max(held, SeqCst);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        self.held.fetch_sub(layout.size(), SeqCst);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(start, layout) }
    }
}
