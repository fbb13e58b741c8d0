//! Which rows' blobs may not have survived a crash of the machine.
//!
//! Blobs are not synced one by one, so after a power failure a row may describe a file whose
//! pages never reached the disk. Clocks can't tell which: they jump, and rows of one moment
//! differ in fate. Generations can, because they only grow:
//!
//! 1. A blob is published before its row is put, and the put draws its generation after that.
//! 2. A sync reads the last generation drawn, then syncs the file system, then records that
//!    generation as vouched for. So every blob of a vouched generation was written before the
//!    sync began.
//! 3. A run draws its generations from a span of its own, [`span_of`]. A run that ends cleanly
//!    vouches for the whole span.
//! 4. The next run doubts what is left of the last run's span, from the generation after the
//!    vouched one. It does not ask why the run ended: `kill -9` loses no pages, but can't be
//!    told from a power failure without trusting more than this file.
//!
//! A doubt lasts: a sync of a later run proves nothing about pages that were lost before it.
//! It ends for a row when the row is put again, with a generation of the new run's.
//!
//! If the record of a run's begin or of a sync is itself lost, so is every row that was
//! written after it: the write-ahead log survives up to some point and nothing beyond.

/// Generations of one run: 2^36, so that 2^27 runs fit into SQLite's integers.
const SPAN_BITS: u32 = 36;
/// Separate spans of doubt that are kept; beyond, neighbours are joined, and the rows between
/// them are hashed once without need.
const DOUBTS_MAX: usize = 1_000;

/// A span of generations, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) first: u64,
    pub(super) last: u64,
}

/// The generations of a run.
pub(super) fn span_of(run: u64) -> Span {
    Span { first: run << SPAN_BITS, last: (run << SPAN_BITS) | ((1 << SPAN_BITS) - 1) }
}

/// Spans of doubt in ascending order, apart from each other.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Doubts(Vec<Span>);

impl Doubts {
    /// Of spans in any order.
    pub(super) fn new(mut spans: Vec<Span>) -> Self {
        spans.retain(|span| span.first <= span.last);
        spans.sort_by_key(|span| span.first);
        let mut joined: Vec<Span> = Vec::with_capacity(spans.len());
        for span in spans {
            match joined.last_mut() {
                Some(before) if span.first <= before.last.saturating_add(1) => {
                    before.last = before.last.max(span.last);
                }
                _ => joined.push(span),
            }
        }
        if joined.len() > DOUBTS_MAX {
            // The oldest: their rows have had the longest to be proven.
            let surplus = joined.len() - DOUBTS_MAX;
            joined[surplus].first = joined[0].first;
            joined.drain(..surplus);
        }
        Self(joined)
    }

    /// Whether the row of this generation is doubted.
    pub(super) fn has(&self, generation: u64) -> bool {
        let behind = self.0.partition_point(|span| span.first <= generation);
        behind > 0 && generation <= self.0[behind - 1].last
    }

    pub(super) fn spans(&self) -> &[Span] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(spans: &[(u64, u64)]) -> Vec<Span> {
        spans.iter().map(|&(first, last)| Span { first, last }).collect()
    }

    #[test]
    fn spans_are_joined_where_they_touch_and_empty_ones_are_dropped() {
        let check = |given: &[(u64, u64)], kept: &[(u64, u64)]| {
            assert_eq!(Doubts::new(spans(given)).0, spans(kept), "{given:?}");
        };
        check(&[], &[]);
        check(&[(5, 4)], &[]);
        check(&[(7, 9), (1, 3)], &[(1, 3), (7, 9)]);
        check(&[(1, 3), (4, 9)], &[(1, 9)]);
        check(&[(1, 9), (2, 3)], &[(1, 9)]);
        check(&[(5, u64::MAX), (6, 7)], &[(5, u64::MAX)]);
    }

    #[test]
    fn exactly_the_generations_of_a_span_are_doubted() {
        let doubts = Doubts::new(spans(&[(3, 4), (8, 8)]));
        let doubted: Vec<u64> = (0..12).filter(|generation| doubts.has(*generation)).collect();
        assert_eq!(doubted, [3, 4, 8]);
        assert!(!Doubts::default().has(0));
    }

    #[test]
    fn past_the_bound_more_is_doubted_never_less() {
        let many: Vec<Span> = (0..2_000).map(|at| Span { first: at * 3, last: at * 3 }).collect();
        let doubts = Doubts::new(many.clone());
        assert_eq!(doubts.spans().len(), DOUBTS_MAX);
        assert!(many.iter().all(|span| doubts.has(span.first)));
        assert!(!doubts.has(1_999 * 3 - 1), "late ones stay apart");
    }

    #[test]
    fn runs_have_spans_of_their_own_within_the_integers_of_sqlite() {
        assert_eq!(span_of(1).last + 1, span_of(2).first);
        assert!(i64::try_from(span_of((1 << 27) - 1).last).is_ok());
    }
}
