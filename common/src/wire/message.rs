//! What sensor and collector say to each other.

use serde::{Deserialize, Serialize};

use super::WireError;
use super::batch::{Batch, PackedBatch};
use crate::health::PortHealth;
use crate::ledger::Ledger;

/// Version of the conversation. A collector refuses a sensor of another one, and the sensor keeps what it has.
pub const VERSION: u32 = 1;

/// How every batch begins: an array of two (a positive fixint follows), and the kind of [`Message::Data`].
pub(super) const DATA: [u8; 2] = [0x92, 3];

/// How deep MessagePack may nest: message, batch, columns, column, references, reference.
const DEPTH_MAX: usize = 8;

/// One message, either way.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// The sensor introduces itself. Kind 1.
    Hello(Hello),
    /// The collector agrees. Kind 2.
    Welcome(Welcome),
    /// Records. Kind 3.
    Data(Batch),
    /// The collector holds these durably. Kind 4.
    Ack(Ack),
    /// The sensor's account, also when there are no records. Kind 5.
    Stats(Stats),
    /// The collector disagrees, and closes. Kind 6.
    Reject(Reject),
}

/// The sensor introduces itself. Its name is in its certificate; a collector believes only that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hello {
    /// [`VERSION`].
    pub version: u32,
    /// Name of the sensor; must equal the certificate's.
    pub sensor: String,
    /// Number of this start of the sensor, from 1; a later start has a larger one. 0 only asks whether the sensor would be welcome.
    pub boot: u64,
    /// Sequence number of the oldest batch that the sensor still holds.
    pub next: u64,
    /// Software and version, for people.
    pub software: String,
    /// The newest [form of batches](super::batch) that the sensor can write; 0 is the first.
    pub batch_form: u32,
}

/// The collector agrees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Welcome {
    /// [`VERSION`].
    pub version: u32,
    /// The last batch of this boot that is durable; 0 for none. Go on with the one after it.
    pub resume_after: u64,
    /// How many batches may be under way without acknowledgement.
    pub credit: u32,
    /// The [form of batches](super::batch) that the sensor may write at most; 0 is the first.
    pub batch_form: u32,
}

/// The collector holds every batch of `boot` up to and including `up_to` durably.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Ack {
    /// Which start of the sensor.
    pub boot: u64,
    /// Sequence number.
    pub up_to: u64,
}

/// The sensor's account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// Which start of the sensor.
    pub boot: u64,
    /// Every packet accounted for.
    pub ledger: Ledger,
    /// How packets are captured, e.g. `af_xdp native copy`.
    pub capture: String,
    /// How well each capture port does its work.
    pub ports: Vec<PortHealth>,
}

/// Why a collector turns a sensor away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RejectCode {
    /// Another [`VERSION`].
    Version,
    /// The name in the hello is not the certificate's.
    Name,
    /// Another connection carries this name, with a newer boot.
    Superseded,
    /// Something that does not belong into the conversation.
    #[default]
    Protocol,
    /// The collector cannot store at the moment.
    Unavailable,
}

/// The collector disagrees, and closes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reject {
    /// For programs.
    pub code: RejectCode,
    /// For people: what is wrong and what to do.
    pub reason: String,
}

impl Message {
    pub(super) fn encode(&self) -> Result<Vec<u8>, WireError> {
        fn pack<T: Serialize>(kind: u8, value: &T) -> Result<Vec<u8>, rmp_serde::encode::Error> {
            let mut out = Vec::with_capacity(1 << 10);
            out.extend_from_slice(&[0x92, kind]); // an array of two, and a positive fixint
            value.serialize(&mut rmp_serde::Serializer::new(&mut out).with_struct_map())?;
            Ok(out)
        }
        match self {
            Self::Hello(hello) => pack(1, hello),
            Self::Welcome(welcome) => pack(2, welcome),
            Self::Data(batch) => pack(3, &PackedBatch::pack(batch)),
            Self::Ack(ack) => pack(4, ack),
            Self::Stats(stats) => pack(5, stats),
            Self::Reject(reject) => pack(6, reject),
        }
        .map_err(|error| WireError::Malformed(error.to_string()))
    }

    pub(super) fn decode(plain: &[u8]) -> Result<Self, WireError> {
        fn unpack<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, WireError> {
            let mut reader = rmp_serde::Deserializer::from_read_ref(body);
            reader.set_max_depth(DEPTH_MAX);
            T::deserialize(&mut reader).map_err(|error| WireError::Malformed(error.to_string()))
        }
        let [0x92, kind, body @ ..] = plain else {
            return Err(WireError::Malformed("not an array of two".to_owned()));
        };
        Ok(match kind {
            1 => Self::Hello(unpack(body)?),
            2 => Self::Welcome(unpack(body)?),
            3 => Self::Data(unpack::<PackedBatch<'_>>(body)?.unpack()?),
            4 => Self::Ack(unpack(body)?),
            5 => Self::Stats(unpack(body)?),
            6 => Self::Reject(unpack(body)?),
            kind => return Err(WireError::Malformed(format!("message kind {kind} is unknown; upgrade this end"))),
        })
    }
}
