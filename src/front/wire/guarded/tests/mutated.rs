//! Requests with a few bytes changed, from a fixed seed: the same every time.

/// A small generator (xorshift64*); what matters is that it is the same everywhere.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// A number below `bound`.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }
}

/// Requests to begin with; bodies and pipelining among them.
const SEEDS: [&str; 10] = [
    "GET /hello HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET /file/2000 HTTP/1.1\r\nHost: a.example.org:80\r\nRange: bytes=0-9\r\n\r\n",
    "HEAD /bytes/500 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    "GET /unknown/900 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    "GET http://a/hello HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
    "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\nhello world",
    "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX: 1\r\n\r\n",
    "POST /ignore HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nunread!!!GET /hello HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nok",
    "GET /hello HTTP/1.1\r\nHost: a\r\n\r\nGET /head HTTP/1.1\r\nHost: b\r\nX-One: c\r\n\r\nGET /bytes/9 HTTP/1.1\r\nHost: c\r\n\r\n",
];

/// What is put in: bytes and words that have misled parsers.
const WORDS: [&[u8]; 24] = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b",",
    b"\x0b",
    b"\x7f",
    b"\xff",
    b"\xe2\x80\xa8",
    b"Content-Length: 5\r\n",
    b"Content-Length: -1\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding : chunked\r\n",
    b"Host: b\r\n",
    b"Expect: 100-continue\r\n",
    b"0\r\n\r\n",
    b"ffffffffffffffff\r\n",
    b"HTTP/2.0",
    b"\r\n\r\n",
    b"%00%0d%0a",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
];

/// The next mutated request.
pub(super) fn request(dice: &mut Dice) -> Vec<u8> {
    let mut bytes = SEEDS[dice.below(SEEDS.len())].as_bytes().to_vec();
    for _ in 0..=dice.below(4) {
        let at = dice.below(bytes.len().max(1));
        match dice.below(6) {
            0 if !bytes.is_empty() => bytes[at] = dice.below(256) as u8,
            1 if !bytes.is_empty() => bytes[at] ^= 1 << dice.below(8),
            2 if !bytes.is_empty() => drop(bytes.remove(at)),
            3 => bytes.truncate(at),
            4 => {
                let word = WORDS[dice.below(WORDS.len())];
                bytes.splice(at..at, word.iter().copied());
            }
            _ => {
                let end = (at + dice.below(60)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
        }
    }
    bytes
}
