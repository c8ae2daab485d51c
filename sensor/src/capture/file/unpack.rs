//! The octets of a file that is not mapped: pipes and packed files. One thread unpacks, and as many readers as wanted get the same octets
//! through queues of a few pieces; their buffers go round.

use std::io::{self, BufReader, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};
use flate2::bufread::MultiGzDecoder;

/// Octets of a piece on its way to the readers, and of what is read of the file at a time.
const PIECE_OCTETS: usize = 256 << 10;
/// Pieces that wait for a reader.
const PIECES_MAX: usize = 4;
/// Decompressed octets per call. A decompressor that finds damage gives nothing of that call, so this much before it is lost at most.
const CALL_OCTETS: usize = 4 << 10;

/// The octets of a file, unpacked.
pub(super) struct Octets {
    from: From,
    packing: Option<&'static str>,
    /// Octets read of the file as it is on disk.
    taken: Arc<AtomicU64>,
}

enum From {
    /// Straight from the file: not packed, and nobody else reads it.
    File(Box<dyn Read + Send>),
    /// From the thread that unpacks.
    Pieces(Pieces),
}

/// One reader's end of the queue.
struct Pieces {
    queue: Receiver<Result<Arc<Vec<u8>>, Failure>>,
    /// Where the memory of pieces goes when every reader is through with them.
    spent: Sender<Vec<u8>>,
    piece: Arc<Vec<u8>>,
    used: usize,
    /// Others read the same file: to wait for it here could make everybody wait for everybody.
    is_shared: bool,
    ending: Option<Failure>,
}

/// Why there is nothing more: a kind and a sentence of an [`io::Error`], which cannot be copied; `None` at the end of the file.
type Failure = Option<(io::ErrorKind, Arc<str>)>;

impl Octets {
    /// Looks at the first octets of a file to learn what it is packed in, and gives `readers` ways to read all of it. One of several
    /// readers never waits: [`Read::read`] says [`io::ErrorKind::WouldBlock`], and then there is [`wait`](Self::wait).
    ///
    /// # Errors
    /// They cannot be read, or the system has no thread to give.
    pub(super) fn open(mut reader: Box<dyn Read + Send>, readers: usize) -> io::Result<Vec<Self>> {
        let mut magic = Vec::with_capacity(4);
        reader.by_ref().take(4).read_to_end(&mut magic)?;
        let packing = packing(&magic);
        let taken = Arc::new(AtomicU64::new(0));
        let file = Counted { reader: Cursor::new(magic).chain(reader), taken: Arc::clone(&taken) };
        let file: Box<dyn Read + Send> = match packing {
            None if readers == 1 => return Ok(vec![Self { from: From::File(Box::new(file)), packing, taken }]),
            None => Box::new(file),
            Some(GZIP) => Box::new(MultiGzDecoder::new(BufReader::with_capacity(PIECE_OCTETS, file))),
            Some(_) => Box::new(zstd::Decoder::with_buffer(BufReader::with_capacity(PIECE_OCTETS, file))?),
        };
        let (spent, blanks) = bounded(PIECES_MAX * readers + 2);
        let (senders, queues): (Vec<_>, Vec<_>) = (0..readers).map(|_| bounded(PIECES_MAX)).unzip();
        let call_octets = if packing.is_some() { CALL_OCTETS } else { PIECE_OCTETS };
        std::thread::Builder::new().name("unpack".to_owned()).spawn(move || unpack(file, call_octets, &senders, &blanks))?;
        let octets = |queue| {
            let (spent, is_shared) = (spent.clone(), readers > 1);
            let pieces = Pieces { queue, spent, piece: Arc::default(), used: 0, is_shared, ending: None };
            Self { from: From::Pieces(pieces), packing, taken: Arc::clone(&taken) }
        };
        Ok(queues.into_iter().map(octets).collect())
    }

    /// Octets straight from `reader`, of which `taken` were read before.
    pub(super) fn plain(reader: impl Read + Send + 'static, taken: u64) -> Self {
        let taken = Arc::new(AtomicU64::new(taken));
        let file = Counted { reader: Cursor::new(Vec::new()).chain(Box::new(reader)), taken: Arc::clone(&taken) };
        Self { from: From::File(Box::new(file)), packing: None, taken }
    }

    /// Octets read so far of the file as it is on disk, by whoever reads it.
    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// What the file is packed in, if it is.
    pub(super) const fn packing(&self) -> Option<&'static str> {
        self.packing
    }

    /// Waits until there is something to read, for so long at most.
    pub(super) fn wait(&mut self, timeout: Duration) {
        if let From::Pieces(pieces) = &mut self.from
            && pieces.is_used_up()
        {
            let next = pieces.queue.recv_timeout(timeout).map_err(|error| match error {
                RecvTimeoutError::Timeout => TryRecvError::Empty,
                RecvTimeoutError::Disconnected => TryRecvError::Disconnected,
            });
            pieces.put(next);
        }
    }
}

impl Read for Octets {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.from {
            From::File(file) => file.read(buffer),
            From::Pieces(pieces) => pieces.read(buffer),
        }
    }
}

impl Pieces {
    fn is_used_up(&self) -> bool {
        self.used == self.piece.len() && self.ending.is_none()
    }

    fn put(&mut self, next: Result<Result<Arc<Vec<u8>>, Failure>, TryRecvError>) {
        match next {
            Ok(Ok(piece)) => {
                let spent = std::mem::replace(&mut self.piece, piece);
                self.used = 0;
                // The last reader of a piece gives its memory back. Where that has no place for it, it goes to the system.
                if let Some(memory) = Arc::into_inner(spent) {
                    let _ = self.spent.try_send(memory);
                }
            }
            Ok(Err(failure)) => self.ending = Some(failure),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => {
                self.ending = Some(Some((io::ErrorKind::Other, Arc::from("the thread that unpacks it died"))));
            }
        }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.is_used_up() {
            let next = match self.is_shared {
                true => self.queue.try_recv(),
                false => self.queue.recv().map_err(|_| TryRecvError::Disconnected),
            };
            self.put(next);
        }
        match &self.ending {
            _ if self.used < self.piece.len() => {}
            None => return Err(io::ErrorKind::WouldBlock.into()),
            Some(None) => return Ok(0),
            Some(Some((kind, sentence))) => return Err(io::Error::new(*kind, sentence.to_string())),
        }
        let rest = &self.piece[self.used..];
        let octets = rest.len().min(buffer.len());
        buffer[..octets].copy_from_slice(&rest[..octets]);
        self.used += octets;
        Ok(octets)
    }
}

/// Reads `file` to its end and gives every reader that is still there all of it.
fn unpack(
    mut file: Box<dyn Read + Send>,
    call_octets: usize,
    readers: &[Sender<Result<Arc<Vec<u8>>, Failure>>],
    blanks: &Receiver<Vec<u8>>,
) {
    let mut ending = None;
    while ending.is_none() {
        let mut piece = blanks.try_recv().unwrap_or_default();
        piece.resize(PIECE_OCTETS, 0);
        let mut filled = 0;
        while filled < PIECE_OCTETS && ending.is_none() {
            let call = call_octets.min(PIECE_OCTETS - filled);
            match file.read(&mut piece[filled..filled + call]) {
                Ok(0) => ending = Some(None),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => ending = Some(Some((error.kind(), Arc::from(error.to_string())))),
            }
            // A pipe gives what it has; whoever reads need not wait for more.
            if call_octets == PIECE_OCTETS && filled > 0 {
                break;
            }
        }
        piece.truncate(filled);
        let piece = Arc::new(piece);
        let mut is_wanted = false;
        for reader in readers {
            is_wanted |= filled == 0 || reader.send(Ok(Arc::clone(&piece))).is_ok();
        }
        if !is_wanted {
            return;
        }
    }
    if let Some(ending) = ending {
        for reader in readers {
            // A reader that is gone wants no ending.
            let _ = reader.send(Err(ending.clone()));
        }
    }
}

/// The file itself, and how much of it was read.
struct Counted {
    reader: io::Chain<Cursor<Vec<u8>>, Box<dyn Read + Send>>,
    taken: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.taken.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

const GZIP: &str = "gzip";

/// What a file is packed in, by its first four octets; a zstd file may begin with a frame that decompressors skip (RFC 8878 section 3.1).
pub(super) fn packing(magic: &[u8]) -> Option<&'static str> {
    match magic {
        [0x1f, 0x8b, ..] => Some(GZIP),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some("zstd"),
        _ => None,
    }
}
