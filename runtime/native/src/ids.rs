//! Request ids and trace ids: unique, not secret and cheap, as `Identifiers` of `request_head.py` makes them.

use crate::others::fill_random;

/// SplitMix64 (Steele, Lea and Flood 2014) from a random seed: identifiers, not secrets.
pub struct Identifiers {
    state: u64,
    prefix: String,
    count: u64,
}

impl Identifiers {
    pub fn new() -> Identifiers {
        let mut seed = [0; 8];
        if fill_random(&mut seed).is_err() {
            seed = std::process::id().to_le_bytes().repeat(2).try_into().unwrap_or_default();
        }
        let mut made = Identifiers { state: u64::from_le_bytes(seed), prefix: String::new(), count: 0 };
        made.prefix = format!("{:012x}", made.next() >> 16);
        made
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// 12 hex digits of this worker and a count.
    pub fn request_id(&mut self) -> String {
        self.count += 1;
        format!("{}-{:x}", self.prefix, self.count)
    }

    /// 32 hex digits, not all zero.
    pub fn trace_id(&mut self) -> String {
        format!("{:016x}{:016x}", self.next(), self.next() | 1)
    }

    /// 16 hex digits, not all zero.
    pub fn span_id(&mut self) -> String {
        format!("{:016x}", self.next() | 1)
    }

    /// The flags of a trace that begins here: a share of them is recorded, which is decided at their head.
    pub fn flags(&mut self, traced: f64) -> &'static str {
        let drawn = (self.next() >> 11) as f64 / (1u64 << 53) as f64;
        if drawn < traced { "01" } else { "00" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_traces_is_recorded() {
        let mut one = Identifiers::new();
        let mut share = |traced| (0..10_000).filter(|_| one.flags(traced) == "01").count();
        assert_eq!((share(0.0), share(1.0)), (0, 10_000));
        assert!((2_000..3_000).contains(&share(0.25)));
    }

    #[test]
    fn no_two_are_alike() {
        let (mut one, mut other) = (Identifiers::new(), Identifiers::new());
        assert_ne!(one.request_id(), one.request_id());
        assert_ne!(one.request_id(), other.request_id());
        assert_eq!((one.trace_id().len(), one.span_id().len()), (32, 16));
        assert_ne!(one.trace_id(), one.trace_id());
    }
}
