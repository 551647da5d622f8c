//! Which threads compute.

use std::num::NonZero;
use std::{env, thread};

use rayon::ThreadPoolBuilder;

/// rayon's, which says how many threads compute; without it, or where it is no number above 0, as many as there are cores.
const VARIABLE: &str = "RAYON_NUM_THREADS";

/// Has the calling thread compute its share of each operation from now on, where it would else wait for two others: waking a thread takes some 0.05 ms, as long as a small
/// operation (a text encoder takes 0.95 to 0.98 of the time). For programs, first of all in `main`, from the thread that computes; there are as many threads
/// as before, this one among them.
///
/// Does nothing where the threads have been started already, and where there is only one: another thread that computes would wait for this one then, which may
/// wait for it.
pub fn compute_with_this_thread() {
    let wish = env::var(VARIABLE).ok();
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = number_of_threads(wish.as_deref(), cores);
    if threads > 1 {
        // An error says that the threads are there: as good as before.
        ThreadPoolBuilder::new().num_threads(threads).use_current_thread().build_global().ok();
    }
}

fn number_of_threads(wish: Option<&str>, cores: usize) -> usize {
    let wish = wish.and_then(|wish| wish.parse().ok());
    wish.filter(|threads| *threads > 0).unwrap_or(cores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_threads_as_rayon_would_have() {
        for (wish, expected) in
            [(None, 6), (Some("3"), 3), (Some("1"), 1), (Some("0"), 6), (Some("many"), 6), (Some(""), 6)]
        {
            assert_eq!(number_of_threads(wish, 6), expected, "{wish:?}");
        }
    }
}
