//! Flights without a cache: who reads along, who waits, and who is called.

use super::*;
use crate::artifact::ArtifactPath;
use crate::body::{Body, read_to_vec};
use crate::waiting::Registration;
use std::fs::File;
use std::io::Write;
use std::sync::atomic::AtomicUsize;

fn key() -> ArtifactKey {
    let path = ArtifactPath::from_canonical("a/b").unwrap();
    ArtifactKey { remote: "r".parse().unwrap(), path }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn lead(flights: &Arc<Flights>) -> FlightWriter {
    match flights.join(&key(), None) {
        Joined::Lead(writer) => writer,
        Joined::Follow(_) => panic!("somebody else leads"),
    }
}

fn head(file: &File, len: Option<u64>, is_checked: bool) -> FlightHead {
    FlightHead {
        file: Arc::new(Scratch::of(file.try_clone().unwrap())),
        len,
        validators: Validators::default(),
        content_type: None,
        content_encoding: None,
        answered_at: SystemTime::UNIX_EPOCH,
        is_checked,
        is_storable: true,
        is_refresh: false,
    }
}

/// The writer of a flight that has a head and no bytes yet.
fn started() -> FlightWriter {
    let writer = lead(&Arc::default());
    writer.start(head(&tempfile::tempfile().unwrap(), None, false));
    writer
}

fn begun(reader: &FlightReader) -> Arc<FlightHead> {
    let deadline = soon();
    loop {
        match reader.head(Instant::now(), Duration::MAX) {
            Some(Begun::Head(head)) => return head,
            Some(Begun::TimedOut) if Instant::now() < deadline => std::thread::yield_now(),
            other => panic!("no head: {other:?}"),
        }
    }
}

/// Waits until a thread that reads a flight waits as `is_so` says.
fn until_it_waits<T>(
    writer: &FlightWriter,
    waiting: &std::thread::JoinHandle<T>,
    is_so: impl Fn(&State) -> bool,
) {
    let deadline = soon();
    while !is_so(&lock(&writer.flight.state)) {
        assert!(!waiting.is_finished() && Instant::now() < deadline, "it does not wait");
        std::thread::yield_now();
    }
}

#[test]
fn a_flight_is_followed_while_somebody_reads_along() {
    let flights = Arc::new(Flights::default());
    let Joined::Lead(writer) = flights.join(&key(), None) else { panic!("it is the first") };
    assert!(!writer.is_followed());
    let leader = writer.reader();
    let Joined::Follow(follower) = flights.join(&key(), None) else { panic!("there is one") };
    drop(leader);
    assert!(writer.is_followed());
    drop(follower);
    assert!(!writer.is_followed());
}

#[test]
fn who_waits_for_a_head_is_woken_by_the_first_bytes() {
    let flights = Arc::new(Flights::default());
    let file = tempfile::tempfile().unwrap();
    let writer = lead(&flights);
    let reader = writer.reader();
    let waiting = std::thread::spawn(move || reader.head(soon(), Duration::MAX));
    until_it_waits(&writer, &waiting, |state| state.waiting > 0);
    writer.start(head(&file, None, false));
    assert!(
        matches!(writer.reader().head(Instant::now(), Duration::MAX), Some(Begun::Head(_))),
        "it is there"
    );
    writer.grew(1);
    assert!(matches!(waiting.join().unwrap(), Some(Begun::Head(_))));
    assert_eq!(lock(&writer.flight.state).waiting, 0);
}

#[test]
fn the_first_leads_and_everybody_else_follows_until_it_lands() {
    let flights = Arc::new(Flights::default());
    let writer = lead(&flights);
    assert!(matches!(flights.join(&key(), None), Joined::Follow(_)));
    assert_eq!(flights.count(), 1);
    writer.end(End::Absent);
    assert_eq!(flights.count(), 0);
    assert!(matches!(flights.join(&key(), None), Joined::Lead(_)));
}

#[test]
fn readers_get_every_byte_though_they_begin_at_other_times_and_places() {
    let flights = Arc::new(Flights::default());
    let mut file = tempfile::tempfile().unwrap();
    let bytes: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
    let writer = lead(&flights);
    let readers: Vec<_> = [0u64, 1, 50_000, 99_999]
        .into_iter()
        .map(|from| {
            let reader = writer.reader();
            std::thread::spawn(move || {
                let head = begun(&reader);
                let mut body =
                    Body::new(Some(100_000 - from), Box::new(reader.follow(head, from, None)));
                (from, read_to_vec(&mut body, 1 << 20).unwrap())
            })
        })
        .collect();
    writer.start(head(&file, Some(100_000), false));
    let mut written = 0;
    for chunk in bytes.chunks(777) {
        file.write_all(chunk).unwrap();
        written += chunk.len() as u64;
        writer.grew(written);
    }
    writer.whole();
    writer.end(End::Unstored);
    for reader in readers {
        let (from, got) = reader.join().unwrap();
        assert!(got == bytes[from as usize..], "the reader from {from}");
    }
}

/// What a reader at 0 that gathers for longer than a test takes is given.
fn gathered(grow: impl FnOnce(&FlightWriter)) -> u64 {
    let writer = started();
    let reader = writer.reader();
    let gather = soon() - Instant::now();
    let waiting = std::thread::spawn(move || {
        reader.readable_from(0, gather, Duration::MAX).unwrap().unwrap()
    });
    until_it_waits(&writer, &waiting, |state| state.awaited == Some(GATHER_BYTES));
    writer.grew(1);
    assert_eq!(lock(&writer.flight.state).awaited, Some(GATHER_BYTES), "it was woken");
    grow(&writer);
    waiting.join().unwrap()
}

#[test]
fn a_quick_reader_is_woken_by_much_or_by_the_end() {
    assert_eq!(gathered(|writer| writer.grew(GATHER_BYTES + 1)), GATHER_BYTES + 1);
    assert_eq!(gathered(FlightWriter::whole), 1);
    assert_eq!(gathered(|writer| writer.land(End::Unstored)), 1);
}

#[test]
fn who_does_not_gather_is_woken_by_every_byte() {
    let writer = started();
    let reader = writer.reader();
    let waiting = std::thread::spawn(move || reader.wait_for(0));
    until_it_waits(&writer, &waiting, |state| state.awaited == Some(1));
    writer.grew(1);
    waiting.join().unwrap().unwrap();
}

#[test]
fn the_end_of_a_checked_body_is_held_back_until_it_is_whole() {
    let flights = Arc::new(Flights::default());
    let mut file = tempfile::tempfile().unwrap();
    let len = HOLD_BACK_BYTES + 10;
    file.write_all(&vec![7; len as usize]).unwrap();
    let writer = lead(&flights);
    let reader = writer.reader();
    writer.start(head(&file, Some(len), true));
    writer.grew(len);
    let mut source = reader.follow(begun(&reader), 0, None);
    assert_eq!(source.next_piece().unwrap().unwrap().len(), 10);
    writer.whole();
    assert_eq!(source.next_piece().unwrap().unwrap().len(), HOLD_BACK_BYTES);
    assert!(source.next_piece().unwrap().is_none());
}

#[test]
fn a_dropped_writer_is_a_failure_that_every_reader_sees() {
    let flights = Arc::new(Flights::default());
    let file = tempfile::tempfile().unwrap();
    let writer = lead(&flights);
    let reader = writer.reader();
    writer.start(head(&file, None, false));
    let mut source = reader.follow(begun(&reader), 0, None);
    drop(writer);
    assert!(matches!(source.next_piece(), Err(BodyError::Cut(_))));
    assert!(reader.wait_for(0).is_err());
    assert!(matches!(reader.head(soon(), Duration::MAX), Some(Begun::Ended(End::Failed(_)))));
    assert_eq!(flights.count(), 0);
}

/// What of a flight is called for, and how often it was.
fn called(coming: Option<Coming>) -> (Arc<AtomicUsize>, Registration) {
    let (calls, coming) = (Arc::new(AtomicUsize::new(0)), coming.expect("it is to come"));
    let call = Arc::clone(&calls);
    let wake = Box::new(move || _ = call.fetch_add(1, Ordering::SeqCst));
    (calls, coming.call(wake).expect("it has not come"))
}

#[test]
fn who_has_no_patience_is_called_when_it_has_come() {
    let flights = Arc::new(Flights::default());
    let file = tempfile::tempfile().unwrap();
    let writer = lead(&flights);
    let reader = writer.reader();
    assert!(reader.head(soon(), Duration::ZERO).is_none());
    let begun = called(Some(reader.head_to_come()));
    let third = called(reader.comes_later(2, Duration::ZERO));
    let landed = called(reader.lands_later(Duration::ZERO));
    // Who does not want to be called any more is not.
    drop(called(Some(reader.head_to_come())).1);
    let check = |expected: [usize; 3]| {
        let calls = [&begun, &third, &landed].map(|(calls, _)| calls.load(Ordering::SeqCst));
        assert_eq!(calls, expected);
    };
    writer.start(head(&file, None, false));
    check([0, 0, 0]);
    writer.grew(2);
    check([1, 0, 0]);
    writer.whole();
    check([1, 1, 0]);
    writer.land(End::Unstored);
    check([1, 1, 1]);
    drop(writer);
    check([1, 1, 1]);
}

#[test]
fn who_would_be_called_for_what_is_there_is_told_so() {
    let flights = Arc::new(Flights::default());
    let file = tempfile::tempfile().unwrap();
    let writer = lead(&flights);
    let reader = writer.reader();
    let (begun, first) = (reader.head_to_come(), reader.comes_later(0, Duration::ZERO));
    writer.start(head(&file, None, false));
    writer.grew(1);
    let is_there = |coming: &dyn Awaited| coming.call(Box::new(|| ())).is_none();
    assert!(is_there(&begun) && is_there(&first.unwrap()));
    assert!(reader.comes_later(0, Duration::ZERO).is_none());
    let landed = reader.lands_later(Duration::ZERO).unwrap();
    assert!(!is_there(&landed));
    drop(writer);
    assert!(is_there(&landed) && reader.lands_later(Duration::ZERO).is_none());
}

#[test]
fn a_body_says_what_is_still_to_come_of_it() {
    let flights = Arc::new(Flights::default());
    let file = tempfile::tempfile().unwrap();
    let writer = lead(&flights);
    writer.start(head(&file, Some(2), false));
    let reader = writer.reader();
    let mut body = Body::new(Some(2), Box::new(reader.follow(begun(&reader), 0, None)));
    let come = |body: &mut Body| body.comes_later(Duration::ZERO).is_none();
    assert!(!come(&mut body));
    writer.grew(1);
    assert!(come(&mut body));
    assert_eq!(body.next_piece().unwrap().unwrap().len(), 1);
    assert!(!come(&mut body));
    writer.grew(2);
    assert_eq!(body.next_piece().unwrap().unwrap().len(), 1);
    assert!(come(&mut body), "it is at its end");
    // A failure has come too.
    let mut failing = reader.follow(begun(&reader), 2, None);
    assert!(failing.comes_later(Duration::ZERO).is_some());
    drop(writer);
    assert!(failing.comes_later(Duration::ZERO).is_none() && failing.next_piece().is_err());
}

#[test]
fn waiting_for_a_head_has_a_bound() {
    let flights = Arc::new(Flights::default());
    let writer = lead(&flights);
    assert!(matches!(writer.reader().head(Instant::now(), Duration::MAX), Some(Begun::TimedOut)));
}
