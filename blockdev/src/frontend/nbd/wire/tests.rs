use super::*;

const OPTION_GO: [u8; 16] = *b"IHAVEOPT\0\0\0\x07\0\0\0\x0c";

/// "data" with the information requests `NAME` and `BLOCK_SIZE`.
const INFO_DATA: [u8; 14] = *b"\0\0\0\x04data\0\x02\0\x01\0\x03";

const META_DATA: [u8; 31] = *b"\0\0\0\x04data\0\0\0\x02\0\0\0\x0fbase:allocation";

fn meta_data() -> Vec<u8> {
    let mut data = META_DATA.to_vec();
    data.extend_from_slice(b"\0\0\0\x02x:");
    data
}

const READ: [u8; 28] = [
    0x25, 0x60, 0x95, 0x13, // magic
    0x00, 0x04, // flags: DF
    0x00, 0x00, // read
    0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08, // cookie
    0x00, 0x00, 0x00, 0x01, 0x00, 0x00, 0x10, 0x00, // offset
    0x00, 0x00, 0x20, 0x00, // length
];

#[test]
fn the_greeting_is_the_documented_bytes() {
    assert_eq!(&greeting(3), b"NBDMAGICIHAVEOPT\x00\x03");
}

#[test]
fn option_headers() {
    let header = OptionHeader::decode(&OPTION_GO).unwrap();
    assert_eq!(header, OptionHeader { option: option::GO, len: 12 });
    assert_eq!(header.encode(), OPTION_GO);
    let mut wrong = OPTION_GO;
    wrong[7] = b't';
    assert_eq!(OptionHeader::decode(&wrong), Err(WireError::Magic));
}

#[test]
fn info_requests() {
    let request = InfoRequest::decode(&INFO_DATA).unwrap();
    assert_eq!(request, InfoRequest { name: "data", wanted: vec![info::NAME, info::BLOCK_SIZE] });
    assert_eq!(InfoRequest::decode(b"\0\0\0\0\0\0").unwrap(), InfoRequest { name: "", wanted: vec![] });
    for cut in 0..INFO_DATA.len() {
        assert_eq!(InfoRequest::decode(&INFO_DATA[..cut]), Err(WireError::Length));
    }
    assert_eq!(InfoRequest::decode(b"\0\0\0\0\0\0\0"), Err(WireError::Length), "a byte is left over");
    assert_eq!(InfoRequest::decode(b"\xff\xff\xff\xff\0\0"), Err(WireError::Length));
    assert_eq!(InfoRequest::decode(b"\0\0\0\x01\xff\0\0"), Err(WireError::Text));
    assert_eq!(InfoRequest::decode(b"\0\0\0\x01\0\0\0"), Err(WireError::Text), "NUL");
    let mut long = 5000u32.to_be_bytes().to_vec();
    long.resize(5006, b'a');
    assert_eq!(InfoRequest::decode(&long), Err(WireError::Text));
}

#[test]
fn meta_context_requests() {
    let data = meta_data();
    let request = MetaRequest::decode(&data[..]).unwrap();
    assert_eq!(request, MetaRequest { export: "data", queries: vec!["base:allocation", "x:"] });
    for cut in 0..data.len() {
        assert_eq!(MetaRequest::decode(&data[..cut]), Err(WireError::Length));
    }
    assert_eq!(MetaRequest::decode(b"\0\0\0\0\xff\xff\xff\xff"), Err(WireError::Length), "more queries than data");
}

#[test]
fn requests() {
    let request = Request::decode(&READ).unwrap();
    let expected = Request {
        flags: command_flag::DF,
        command: command::READ,
        cookie: 0x0102_0304_0506_0708,
        offset: 0x1_0000_1000,
        len: 8192,
    };
    assert_eq!(request, expected);
    assert_eq!(request.encode(), READ);
    assert_eq!(request.payload(), 0);
    assert_eq!(Request { command: command::WRITE, ..request }.payload(), 8192);
    let mut wrong = READ;
    wrong[0] ^= 1;
    assert_eq!(Request::decode(&wrong), Err(WireError::Magic));
}

#[test]
fn option_replies() {
    let mut out = BytesMut::new();
    put_option_reply(&mut out, option::LIST, option_reply::SERVER, &[&4u32.to_be_bytes(), b"data"]);
    put_option_reply(&mut out, option::LIST, option_reply::ERR_UNSUP, &[]);
    let expected = [
        &b"\x00\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x03\0\0\0\x02\0\0\0\x08\0\0\0\x04data"[..],
        &b"\x00\x03\xe8\x89\x04\x55\x65\xa9\0\0\0\x03\x80\0\0\x01\0\0\0\0"[..],
    ]
    .concat();
    assert_eq!(&out[..], &expected[..]);
}

#[test]
fn replies_are_the_documented_bytes() {
    let cookie = 0x0102_0304_0506_0708;
    assert_eq!(simple_reply(cookie, 28).as_slice(), b"\x67\x44\x66\x98\0\0\0\x1c\x01\x02\x03\x04\x05\x06\x07\x08");
    assert_eq!(
        data_chunk(cookie, chunk::FLAG_DONE, 0x1000, 0x200).as_slice(),
        b"\x66\x8e\x33\xef\0\x01\0\x01\x01\x02\x03\x04\x05\x06\x07\x08\0\0\x02\x08\0\0\0\0\0\0\x10\0"
    );
    assert_eq!(
        hole_chunk(cookie, 0, 0x1000, 0x200).as_slice(),
        b"\x66\x8e\x33\xef\0\0\0\x02\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x0c\0\0\0\0\0\0\x10\0\0\0\x02\0"
    );
    assert_eq!(none_chunk(cookie).as_slice(), b"\x66\x8e\x33\xef\0\x01\0\0\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0");
    assert_eq!(
        &error_chunk(cookie, Errno::Io, "bad")[..],
        b"\x66\x8e\x33\xef\0\x01\x80\x01\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x09\0\0\0\x05\0\x03bad"
    );
    let extents = [Descriptor { len: 4096, flags: 0 }, Descriptor { len: 8192, flags: state::HOLE | state::ZERO }];
    assert_eq!(
        &status_chunk(cookie, chunk::FLAG_DONE, 7, &extents)[..],
        b"\x66\x8e\x33\xef\0\x01\0\x05\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\x14\
          \0\0\0\x07\0\0\x10\0\0\0\0\0\0\0\x20\0\0\0\0\x03"
    );
}

#[test]
fn error_messages_are_cut_between_characters() {
    let message = "ä".repeat(3000);
    let chunk = error_chunk(1, Errno::Inval, &message);
    assert_eq!(chunk.len(), 26 + 4096);
    let odd = format!("x{message}");
    let chunk = error_chunk(1, Errno::Inval, &odd);
    assert_eq!(chunk.len(), 26 + 4095);
    assert!(std::str::from_utf8(&chunk[26..]).is_ok());
}

#[test]
fn replies_decode_to_what_was_encoded() {
    let simple = simple_reply(9, 5);
    assert_eq!(Reply::decode(simple.as_slice()), Ok(Some((Reply::Simple { cookie: 9, errno: 5 }, 16))));
    let chunk = data_chunk(9, chunk::FLAG_DONE, 1, 100);
    let expected = Reply::Chunk { cookie: 9, flags: 1, kind: chunk::OFFSET_DATA, len: 108 };
    assert_eq!(Reply::decode(chunk.as_slice()), Ok(Some((expected, 20))));
    for cut in 0..16 {
        assert_eq!(Reply::decode(&simple.as_slice()[..cut]), Ok(None));
        assert_eq!(Reply::decode(&chunk.as_slice()[..cut]), Ok(None));
    }
    assert_eq!(Reply::decode(b"none"), Err(WireError::Magic));
}

/// Every decoder takes any bytes without a panic, and what it accepts lies within them.
#[test]
fn mutated_input_never_panics() {
    let mut state = 0x2545_F491_4F6C_DD1Du64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let seeds =
        [OPTION_GO.to_vec(), INFO_DATA.to_vec(), meta_data(), READ.to_vec(), simple_reply(1, 2).as_slice().to_vec()];
    for round in 0..50_000 {
        let mut bytes = seeds[round % seeds.len()].clone();
        for _ in 0..1 + random() % 4 {
            match random() % 4 {
                0 => bytes.truncate(random() as usize % (bytes.len() + 1)),
                1 => bytes.extend_from_slice(&random().to_be_bytes()),
                _ => {
                    if let Some(at) = (random() as usize).checked_rem(bytes.len()) {
                        bytes[at] = random() as u8;
                    }
                }
            }
        }
        if let Ok(request) = InfoRequest::decode(&bytes) {
            assert!(request.name.len() + 2 * request.wanted.len() + 6 == bytes.len());
        }
        if let Ok(request) = MetaRequest::decode(&bytes) {
            let queries: usize = request.queries.iter().map(|q| q.len() + 4).sum();
            assert_eq!(request.export.len() + 8 + queries, bytes.len());
        }
        if let Some(header) = bytes.first_chunk() {
            assert!(OptionHeader::decode(header).is_err() || bytes.starts_with(b"IHAVEOPT"));
        }
        if let Some(header) = bytes.first_chunk()
            && let Ok(request) = Request::decode(header)
        {
            assert_eq!(&request.encode(), header);
        }
        if let Ok(Some((_, used))) = Reply::decode(&bytes) {
            assert!(used <= bytes.len());
        }
    }
}
