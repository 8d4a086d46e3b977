//! The header of a packet (virtio 1.2, 5.10.6).

/// The host's CID.
pub(super) const HOST_CID: u64 = 2;
/// The type of stream sockets.
pub(super) const STREAM: u16 = 1;
/// SHUTDOWN: the sender takes no more.
pub(super) const NO_RECEIVE: u32 = 1;
/// SHUTDOWN: the sender sends no more.
pub(super) const NO_SEND: u32 = 2;

/// Most bytes of data of one packet, in both directions; Linux has the same limit.
pub const MAX_DATA: usize = 64 << 10;

/// What a packet is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Op {
    /// None of the specification's.
    #[default]
    Invalid,
    /// A connection is asked for.
    Request,
    /// It is accepted.
    Response,
    /// There is no such connection, or no more.
    Reset,
    /// Half of it ends, or both: the flags tell.
    Shutdown,
    /// Data.
    Data,
    /// The sender's buffer has room, as every header says.
    CreditUpdate,
    /// The sender wants to know of the other's.
    CreditRequest,
}

/// In the order of their numbers.
const OPS: [Op; 8] = [
    Op::Invalid,
    Op::Request,
    Op::Response,
    Op::Reset,
    Op::Shutdown,
    Op::Data,
    Op::CreditUpdate,
    Op::CreditRequest,
];

/// The fields of a header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Sender.
    pub src_cid: u64,
    /// Receiver.
    pub dst_cid: u64,
    /// Sender's port.
    pub src_port: u32,
    /// Receiver's port.
    pub dst_port: u32,
    /// Bytes of data behind the header.
    pub len: u32,
    /// Type of socket: 1 is a stream.
    pub kind: u16,
    /// What it is for.
    pub op: Op,
    /// Of a [`Op::Shutdown`]: bit 0, the sender takes no more; bit 1, it sends no more.
    pub flags: u32,
    /// Size of the sender's buffer in bytes.
    pub buf_alloc: u32,
    /// Bytes that have left it, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// Bytes of a header.
    pub const LEN: usize = 44;

    /// The fields of `bytes`.
    pub fn from_bytes(bytes: &[u8; Self::LEN]) -> Self {
        let field = |at: usize, len: usize| {
            bytes.iter().skip(at).take(len).rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
        };
        let word = |at| field(at, 4) as u32;
        let op = OPS.get(field(30, 2) as usize).copied().unwrap_or_default();
        Self {
            src_cid: field(0, 8),
            dst_cid: field(8, 8),
            src_port: word(16),
            dst_port: word(20),
            len: word(24),
            kind: field(28, 2) as u16,
            op,
            flags: word(32),
            buf_alloc: word(36),
            fwd_cnt: word(40),
        }
    }

    /// The same as bytes.
    pub fn to_bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let mut put = |at: usize, value: &[u8]| {
            bytes.iter_mut().skip(at).zip(value).for_each(|(byte, value)| *byte = *value);
        };
        put(0, &self.src_cid.to_le_bytes());
        put(8, &self.dst_cid.to_le_bytes());
        put(16, &self.src_port.to_le_bytes());
        put(20, &self.dst_port.to_le_bytes());
        put(24, &self.len.to_le_bytes());
        put(28, &self.kind.to_le_bytes());
        put(30, &(self.op as u16).to_le_bytes());
        put(32, &self.flags.to_le_bytes());
        put(36, &self.buf_alloc.to_le_bytes());
        put(40, &self.fwd_cnt.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_44_bytes_with_each_field_at_its_place() {
        let header = Header {
            src_cid: 0x1716_1514_1312_1110,
            dst_cid: 0x2726_2524_2322_2120,
            src_port: 0x3332_3130,
            dst_port: 0x4342_4140,
            len: 0x5352_5150,
            kind: 0x6160,
            op: Op::CreditRequest,
            flags: 0x8382_8180,
            buf_alloc: 0x9392_9190,
            fwd_cnt: 0xa3a2_a1a0,
        };
        let bytes = header.to_bytes();
        let expected = [
            0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26,
            0x27, //
            0x30, 0x31, 0x32, 0x33, 0x40, 0x41, 0x42, 0x43, 0x50, 0x51, 0x52, 0x53, 0x60, 0x61, 7, 0, //
            0x80, 0x81, 0x82, 0x83, 0x90, 0x91, 0x92, 0x93, 0xa0, 0xa1, 0xa2, 0xa3,
        ];
        assert_eq!(bytes, expected);
        assert_eq!(Header::from_bytes(&bytes), header);
        for (number, op) in [(0, Op::Invalid), (8, Op::Invalid), (1, Op::Request), (5, Op::Data)] {
            let mut bytes = bytes;
            bytes[30] = number;
            assert_eq!(Header::from_bytes(&bytes).op, op);
        }
    }
}
