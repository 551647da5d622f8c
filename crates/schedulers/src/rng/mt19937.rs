//! The Mersenne Twister, seeded and tempered as torch's CPU generator does it.

/// Words of state.
pub(super) const STATE_WORDS: usize = 624;
/// Distance of the word that is mixed in.
const SHIFT: usize = 397;

/// mt19937 (Matsumoto and Nishimura, 1998).
#[derive(Clone)]
pub(super) struct Mt19937 {
    state: [u32; STATE_WORDS],
    next: usize,
}

impl Mt19937 {
    /// Seeds with the low 32 bits of `seed`: the high ones do not matter, as in torch.
    pub(super) fn new(seed: u64) -> Self {
        let mut state = [0u32; STATE_WORDS];
        let mut word = seed as u32;
        for (index, slot) in state.iter_mut().enumerate() {
            if index > 0 {
                word = 1_812_433_253u32.wrapping_mul(word ^ (word >> 30)).wrapping_add(index as u32);
            }
            *slot = word;
        }
        Self { state, next: STATE_WORDS }
    }

    /// The state, and how many of its words were drawn.
    pub(super) fn parts(&self) -> (&[u32; STATE_WORDS], usize) {
        (&self.state, self.next)
    }

    /// The generator whose [`parts`](Self::parts) these are; none if it cannot have drawn so many words.
    pub(super) fn from_parts(state: [u32; STATE_WORDS], drawn: usize) -> Option<Self> {
        (drawn <= STATE_WORDS).then_some(Self { state, next: drawn })
    }

    /// 32 uniform bits.
    pub(super) fn next_u32(&mut self) -> u32 {
        if self.next == STATE_WORDS {
            self.refill();
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    /// 64 uniform bits: the first draw is the high half.
    pub(super) fn next_u64(&mut self) -> u64 {
        let high = u64::from(self.next_u32());
        high << 32 | u64::from(self.next_u32())
    }

    fn refill(&mut self) {
        for index in 0..STATE_WORDS {
            let following = self.state[(index + 1) % STATE_WORDS];
            let mixed = (self.state[index] & 0x8000_0000) | (following & 0x7fff_ffff);
            let twist = (mixed >> 1) ^ if following & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[index] = self.state[(index + SHIFT) % STATE_WORDS] ^ twist;
        }
        self.next = 0;
    }
}
