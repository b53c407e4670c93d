//! Conversations as clients have them.

use blockdev::frontend::nbd::wire::{Request, command, command_flag, info, option};

use crate::client::{FLAGS, encode_option, info_data, meta_data};
use crate::lab::Random;

/// Size of the export.
pub const MIB: u64 = 1 << 20;

fn request(out: &mut Vec<u8>, command: u16, flags: u16, offset: u64, len: u32) {
    out.extend(Request { flags, command, cookie: out.len() as u64, offset, len }.encode());
    if command == command::WRITE {
        out.resize(out.len() + len as usize, 0x5A);
    }
}

/// A valid conversation about the export `a` of [`MIB`] bytes, from the client's flags on.
pub fn conversation(random: &mut Random) -> Vec<u8> {
    let mut out = FLAGS.to_be_bytes().to_vec();
    if random.below(2) == 0 {
        out.extend(encode_option(option::LIST, &[]));
        out.extend(encode_option(option::INFO, &info_data("a", &[info::NAME, info::BLOCK_SIZE])));
    }
    if random.below(4) != 0 {
        out.extend(encode_option(option::STRUCTURED_REPLY, &[]));
        out.extend(encode_option(option::LIST_META_CONTEXT, &meta_data("a", &["base:"])));
        out.extend(encode_option(option::SET_META_CONTEXT, &meta_data("a", &["base:allocation"])));
    }
    if random.below(4) == 0 {
        out.extend(encode_option(option::EXPORT_NAME, b"a"));
    } else {
        out.extend(encode_option(option::GO, &info_data("a", &[info::BLOCK_SIZE])));
    }
    for _ in 0..random.below(12) {
        let offset = random.below(MIB);
        let len = random.below(20_000) as u32;
        match random.below(8) {
            0 | 1 => request(&mut out, command::WRITE, 0, offset, len),
            2 => request(&mut out, command::READ, command_flag::DF, offset, len),
            3 => request(&mut out, command::TRIM, command_flag::FUA, offset, len),
            4 => request(&mut out, command::WRITE_ZEROES, command_flag::FAST_ZERO, offset, len),
            5 => request(&mut out, command::BLOCK_STATUS, 0, offset, len),
            6 => request(&mut out, command::FLUSH, 0, 0, 0),
            _ => request(&mut out, command::READ, 0, offset, len),
        }
    }
    if random.below(2) == 0 {
        request(&mut out, command::DISC, 0, 0, 0);
    }
    out
}
