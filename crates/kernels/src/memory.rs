use std::alloc::{GlobalAlloc, Layout, System};

/// An allocator that keeps large buffers when they are freed, for the next one of their size.
///
/// A denoising step asks for and frees hundreds of buffers of many megabytes. The system takes each back and hands out fresh pages, which it
/// clears and maps one by one (4 kB each): a quarter of a step's time. A program that paints many steps says once
///
/// ```
/// use candle_diffusers_kernels::PooledAllocator;
///
/// #[global_allocator]
/// static ALLOCATOR: PooledAllocator = PooledAllocator::new();
/// # fn main() {}
/// ```
///
/// It never holds more than the program itself once held at the same time, and at most 4 GiB for later. Buffers of 1 MiB and more are kept, on
/// Linux in huge pages where the system has some; smaller ones are the system allocator's, which is told to keep some too where it is glibc's.
/// Elsewhere than on Unix everything is the system allocator's.
#[derive(Debug)]
pub struct PooledAllocator {
    #[cfg(unix)]
    pool: pool::Pool,
}

impl PooledAllocator {
    /// An empty pool.
    pub const fn new() -> Self {
        Self {
            #[cfg(unix)]
            pool: pool::Pool::new(),
        }
    }
}

impl Default for PooledAllocator {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(not(unix))]
// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for PooledAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(start, layout) }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { System.realloc(start, layout, size) }
    }
}

#[cfg(unix)]
// SAFETY: a layout alone says whose a block is (`pool::Class::of`), so that each goes back to where it came from. A block of the pool is as large
// as its class, which is at least as large as the layout, and begins at a multiple of the largest alignment that the pool takes.
unsafe impl GlobalAlloc for PooledAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match pool::Class::of(layout) {
            Some(class) => self.pool.take(class).start,
            // SAFETY: the caller's promise.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some(class) = pool::Class::of(layout) else {
            // SAFETY: the caller's promise.
            return unsafe { System.alloc_zeroed(layout) };
        };
        let block = self.pool.take(class);
        if !block.is_fresh && !block.start.is_null() {
            // SAFETY: the block is at least as large as the layout, and nobody else's.
            unsafe { block.start.write_bytes(0, layout.size()) };
        }
        block.start
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        match pool::Class::of(layout) {
            // SAFETY: a block of this class was taken from the pool for this layout, and the caller is done with it.
            Some(class) => unsafe { self.pool.give_back(start, class) },
            // SAFETY: the caller's promise.
            None => unsafe { System.dealloc(start, layout) },
        }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises that the size, rounded up to the alignment, does not overflow.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        match (pool::Class::of(layout), pool::Class::of(new)) {
            // SAFETY: the caller's promise.
            (None, None) => unsafe { System.realloc(start, layout, size) },
            (before, after) if before == after => start,
            _ => {
                // SAFETY: the new block has another place; what both have room for is copied, then the old one goes back to where it came from.
                unsafe {
                    let moved = self.alloc(new);
                    if !moved.is_null() {
                        moved.copy_from_nonoverlapping(start, layout.size().min(size));
                        self.dealloc(start, layout);
                    }
                    moved
                }
            }
        }
    }
}

#[cfg(unix)]
mod pool {
    use std::alloc::Layout;
    use std::ptr;
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Mutex, MutexGuard, PoisonError};

    /// Huge pages of x86-64, and a multiple of every other page.
    const ALIGNMENT: usize = 2 << 20;
    const SMALLEST: usize = 1 << 20;
    const LARGEST: usize = 1 << 32;
    /// So that the class is below [`LARGEST`].
    const MOST_TAKEN: usize = LARGEST - LARGEST / (2 * STEPS);
    /// Sizes from one power of two to the next: no block is more than an eighth larger than what was asked for.
    const STEPS: usize = 8;
    const CLASSES: usize = STEPS * (LARGEST.ilog2() - SMALLEST.ilog2()) as usize;
    const MOST_KEPT: usize = 1 << 32;

    /// A size that blocks of the pool have.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) struct Class(usize);

    impl Class {
        /// The smallest with room for a layout; none for layouts that are the system allocator's.
        pub(super) fn of(layout: Layout) -> Option<Self> {
            let size = layout.size();
            if !(SMALLEST..=MOST_TAKEN).contains(&size) || layout.align() > ALIGNMENT {
                return None;
            }
            // Of one less, so that a power of two is a class of its own.
            let doubling = (size - 1).ilog2().max(SMALLEST.ilog2());
            let step = (1usize << doubling) / STEPS;
            let steps = size.saturating_sub(1 << doubling).div_ceil(step);
            Some(Self((doubling - SMALLEST.ilog2()) as usize * STEPS + steps))
        }

        pub(super) fn size(self) -> usize {
            let power = SMALLEST << (self.0 / STEPS);
            power + power / STEPS * (self.0 % STEPS)
        }
    }

    /// Memory for a class; `start` is null where the system has none.
    pub(super) struct Block {
        pub(super) start: *mut u8,
        /// Whether it holds zeros.
        pub(super) is_fresh: bool,
    }

    #[derive(Debug)]
    pub(super) struct Pool {
        state: Mutex<State>,
    }

    #[derive(Debug)]
    struct State {
        /// The first free block of each class; each free block begins with the address of the next.
        free: [*mut u8; CLASSES],
        /// Bytes of all free blocks, of those in use, and the most that were ever in use.
        free_bytes: usize,
        used_bytes: usize,
        most_used_bytes: usize,
    }

    // SAFETY: the free blocks belong to the pool alone, whichever thread looks.
    unsafe impl Send for State {}

    impl Pool {
        pub(super) const fn new() -> Self {
            let free = [ptr::null_mut(); CLASSES];
            Self { state: Mutex::new(State { free, free_bytes: 0, used_bytes: 0, most_used_bytes: 0 }) }
        }

        pub(super) fn take(&self, class: Class) -> Block {
            let mut state = self.lock();
            state.used_bytes += class.size();
            state.most_used_bytes = state.most_used_bytes.max(state.used_bytes);
            let kept = state.pop(class);
            // What is kept must not make the program larger than it was.
            while kept.is_none() && state.used_bytes + state.free_bytes > state.most_used_bytes {
                if !state.release_largest() {
                    break;
                }
            }
            // The system may take its time.
            drop(state);
            if let Some(start) = kept {
                return Block { start, is_fresh: false };
            }
            #[cfg(all(target_os = "linux", target_env = "gnu"))]
            keep_smaller_blocks();
            let start = map(class.size());
            if start.is_null() {
                self.lock().used_bytes -= class.size();
            }
            Block { start, is_fresh: true }
        }

        /// # Safety
        /// The block must have come from [`take`](Self::take) with this class, and nobody may use it any more.
        pub(super) unsafe fn give_back(&self, start: *mut u8, class: Class) {
            let mut state = self.lock();
            let size = class.size();
            // Freed and free, it is no more than was in use at once.
            let is_kept = state.free_bytes + size <= MOST_KEPT
                && state.used_bytes + state.free_bytes <= state.most_used_bytes;
            state.used_bytes -= size;
            if is_kept {
                // SAFETY: the block is the pool's now.
                unsafe { state.push(start, class) };
                return;
            }
            drop(state);
            // SAFETY: as above.
            unsafe { unmap(start, size) };
        }

        fn lock(&self) -> MutexGuard<'_, State> {
            // Nothing can fail while it is held.
            self.state.lock().unwrap_or_else(PoisonError::into_inner)
        }

        #[cfg(test)]
        pub(super) fn free_bytes(&self) -> usize {
            self.lock().free_bytes
        }
    }

    impl State {
        fn pop(&mut self, class: Class) -> Option<*mut u8> {
            let first = self.free[class.0];
            if first.is_null() {
                return None;
            }
            // SAFETY: a free block begins with the address of the next, and is aligned for it.
            self.free[class.0] = unsafe { first.cast::<*mut u8>().read() };
            self.free_bytes -= class.size();
            Some(first)
        }

        /// # Safety
        /// The block must be of this class and nobody's.
        unsafe fn push(&mut self, start: *mut u8, class: Class) {
            // SAFETY: the block has room for an address and is aligned for it.
            unsafe { start.cast::<*mut u8>().write(self.free[class.0]) };
            self.free[class.0] = start;
            self.free_bytes += class.size();
        }

        /// Gives the largest free block back to the system; says whether there was one.
        fn release_largest(&mut self) -> bool {
            for class in (0..CLASSES).rev().map(Class) {
                if let Some(start) = self.pop(class) {
                    // SAFETY: a free block is the pool's, and is now in no list.
                    unsafe { unmap(start, class.size()) };
                    return true;
                }
            }
            false
        }
    }

    /// Has the system's allocator keep what is too small for the pool: by default glibc gives the end of its heap back whenever more than 128 kB
    /// are free there, and the next operation's buffers are fresh pages again.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn keep_smaller_blocks() {
        static IS_TOLD: AtomicBool = AtomicBool::new(false);
        const MOST_KEPT_AT_AN_END: libc::c_int = 128 << 20;
        if !IS_TOLD.swap(true, Ordering::Relaxed) {
            // SAFETY: these are limits, which may be set at any time. Blocks below the first are part of the heap, which the second is about.
            unsafe {
                libc::mallopt(libc::M_MMAP_THRESHOLD, SMALLEST as libc::c_int);
                libc::mallopt(libc::M_TRIM_THRESHOLD, MOST_KEPT_AT_AN_END);
            }
        }
    }

    /// Zeros from the system, at a multiple of [`ALIGNMENT`]; null where it has none.
    fn map(size: usize) -> *mut u8 {
        let (flags, access) = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, libc::PROT_READ | libc::PROT_WRITE);
        let reserved = size + ALIGNMENT;
        // SAFETY: a new mapping touches no memory that is in use.
        let start = unsafe { libc::mmap(ptr::null_mut(), reserved, access, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return ptr::null_mut();
        }
        let start = start.cast::<u8>();
        let before = start.align_offset(ALIGNMENT);
        // SAFETY: both parts lie in the new mapping, before and behind the block; they end at pages, as sizes are multiples of 128 kB. The
        // advice changes no contents, and a system that does not follow it is as good.
        unsafe {
            let block = start.add(before);
            if before > 0 {
                unmap(start, before);
            }
            unmap(block.add(size), reserved - before - size);
            #[cfg(target_os = "linux")]
            libc::madvise(block.cast(), size, libc::MADV_HUGEPAGE);
            block
        }
    }

    /// # Safety
    /// The pages must have been mapped, and nobody may use them any more.
    unsafe fn unmap(start: *mut u8, size: usize) {
        // SAFETY: the caller's promise. It cannot fail for pages that are mapped, and there would be nothing to do.
        unsafe { libc::munmap(start.cast(), size) };
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_class_has_room_and_wastes_little() {
            for size in [
                SMALLEST,
                SMALLEST + 1,
                5 << 20,
                (5 << 20) + 1,
                77_777_777,
                1 << 30,
                (1 << 30) - 1,
                LARGEST / 8 * 7,
            ] {
                let class = Class::of(Layout::from_size_align(size, 64).unwrap()).unwrap();
                assert!(
                    class.0 < CLASSES && class.size() >= size && class.size() - size <= size / STEPS,
                    "{size}"
                );
                assert_eq!(Class::of(Layout::from_size_align(class.size(), 1).unwrap()), Some(class));
            }
            for (size, alignment) in [(SMALLEST - 1, 64), (LARGEST, 64), (1 << 40, 1), (SMALLEST, 4 << 20)] {
                assert_eq!(Class::of(Layout::from_size_align(size, alignment).unwrap()), None);
            }
        }
    }
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 64).unwrap()
    }

    #[test]
    fn a_freed_block_is_the_next_of_its_size() {
        let allocator = PooledAllocator::new();
        // SAFETY: each block is used within its layout and freed once with it.
        unsafe {
            let first = allocator.alloc(layout(3 * MIB));
            assert_eq!(first as usize % (2 * MIB), 0);
            first.write_bytes(7, 3 * MIB);
            allocator.dealloc(first, layout(3 * MIB));
            assert_eq!(allocator.pool.free_bytes(), 3 * MIB);
            let second = allocator.alloc_zeroed(layout(3 * MIB - 5));
            assert_eq!(second, first);
            assert!(std::slice::from_raw_parts(second, 3 * MIB - 5).iter().all(|byte| *byte == 0));
            allocator.dealloc(second, layout(3 * MIB - 5));
        }
    }

    #[test]
    fn no_more_is_kept_than_was_in_use() {
        let allocator = PooledAllocator::new();
        // SAFETY: as above.
        unsafe {
            let blocks = [2, 4, 8].map(|size| (allocator.alloc(layout(size * MIB)), layout(size * MIB)));
            for (block, layout) in blocks {
                allocator.dealloc(block, layout);
            }
            assert_eq!(allocator.pool.free_bytes(), 14 * MIB);
            // Another size needs the room of the largest.
            let other = allocator.alloc_zeroed(layout(5 * MIB));
            assert_eq!(allocator.pool.free_bytes(), 6 * MIB);
            assert!(std::slice::from_raw_parts(other, 5 * MIB).iter().all(|byte| *byte == 0));
            allocator.dealloc(other, layout(5 * MIB));
        }
    }

    #[test]
    fn contents_move_along() {
        let allocator = PooledAllocator::new();
        // SAFETY: as above; what realloc gives replaces what it was given.
        unsafe {
            let mut block = allocator.alloc(layout(1000));
            (0..1000).for_each(|index| block.add(index).write(index as u8));
            let mut size = 1000;
            for next in [2 * MIB, 2 * MIB - 10, 9 * MIB, 500] {
                block = allocator.realloc(block, layout(size), next);
                size = next;
                assert!((0..500).all(|index| block.add(index).read() == index as u8), "{next}");
            }
            allocator.dealloc(block, layout(size));
        }
    }
}
