use super::*;
use crate::frontend::memory::MemoryDevice;
use crate::frontend::nbd::wire::OPTION_REPLY_MAGIC;

struct One(Arc<MemoryDevice>);

impl Exports for One {
    fn list(&self) -> Vec<String> {
        vec!["only".to_owned()]
    }

    fn open(&self, name: &str) -> crate::error::Result<Arc<dyn BlockDevice>> {
        match name {
            "only" => Ok(self.0.clone()),
            "stopped" => Err(Error::new(ErrorKind::Unavailable, "the pool is stopped")),
            _ => Err(Error::new(ErrorKind::NotFound, "no such volume")),
        }
    }

    fn contexts(&self, _name: &str) -> Vec<Arc<dyn MetaContext>> {
        (0..self.0.geometry().size).map(|i| Arc::new(Named(format!("x-test:{i}"))) as Arc<dyn MetaContext>).collect()
    }
}

struct Named(String);

impl MetaContext for Named {
    fn name(&self) -> &str {
        &self.0
    }

    fn status(
        &self,
        _device: &Arc<dyn BlockDevice>,
        _offset: u64,
        len: u32,
        _max: usize,
    ) -> crate::env::BoxFuture<crate::error::Result<Vec<wire::Descriptor>>> {
        Box::pin(std::future::ready(Ok(vec![wire::Descriptor { len, flags: 1 }])))
    }
}

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat()
}

/// Types of the replies in `out`; each must be well-formed.
fn kinds(out: &[u8], option: u32) -> Vec<u32> {
    let mut kinds = Vec::new();
    let mut rest = out;
    while !rest.is_empty() {
        let (magic, then) = rest.split_first_chunk().unwrap();
        assert_eq!(u64::from_be_bytes(*magic), OPTION_REPLY_MAGIC);
        let word = |at: usize| u32::from_be_bytes(then[at..at + 4].try_into().unwrap());
        assert_eq!(word(0), option);
        kinds.push(word(4));
        rest = &then[12 + word(8) as usize..];
    }
    kinds
}

fn ask(negotiation: &mut Negotiation<'_>, option: u32, data: &[u8]) -> Vec<u32> {
    let mut out = BytesMut::new();
    let _ = negotiation.option(option, data, &mut out);
    kinds(&out, option)
}

#[test]
fn more_contexts_can_be_offered_and_selected() {
    let exports = One(Arc::new(MemoryDevice::new(20)));
    let mut negotiation = Negotiation::new(&exports, Tls::None, 3);
    ask(&mut negotiation, option::STRUCTURED_REPLY, &[]);
    let query = |queries: &[&str]| {
        let mut data = string("only");
        data.extend((queries.len() as u32).to_be_bytes());
        queries.iter().for_each(|query| data.extend(string(query)));
        data
    };
    assert_eq!(ask(&mut negotiation, option::LIST_META_CONTEXT, &query(&[])).len(), 1 + 20 + 1);
    assert_eq!(ask(&mut negotiation, option::LIST_META_CONTEXT, &query(&["x-test:"])).len(), 20 + 1);
    let names: Vec<String> = (0..20).map(|i| format!("x-test:{i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert_eq!(ask(&mut negotiation, option::SET_META_CONTEXT, &query(&names)), [option_reply::ERR_TOO_BIG]);
    let chosen = query(&["x-test:3", "base:allocation", "x-test:99"]);
    assert_eq!(ask(&mut negotiation, option::SET_META_CONTEXT, &chosen).len(), 2 + 1);
    let mut out = BytesMut::new();
    let Step::Transmit(agreed) = negotiation.option(option::EXPORT_NAME, b"only", &mut out) else {
        panic!("the export exists");
    };
    let names: Vec<_> = agreed.contexts.iter().map(|context| context.name().to_owned()).collect();
    assert_eq!(names, ["base:allocation", "x-test:3"]);
}

#[test]
fn errors_of_opening_are_told_apart() {
    let exports = One(Arc::new(MemoryDevice::new(20)));
    let mut negotiation = Negotiation::new(&exports, Tls::Running, 3);
    let info = |name| [string(name), vec![0, 0]].concat();
    assert_eq!(ask(&mut negotiation, option::GO, &info("stopped")), [option_reply::ERR_SHUTDOWN]);
    assert_eq!(ask(&mut negotiation, option::GO, &info("other")), [option_reply::ERR_UNKNOWN]);
    assert_eq!(ask(&mut negotiation, option::STARTTLS, &[]), [option_reply::ERR_INVALID]);
    assert_eq!(ask(&mut negotiation, option::INFO, &info("only")), [option_reply::INFO, option_reply::ACK]);
}

#[test]
fn tls_needs_fixed_newstyle() {
    let exports = One(Arc::new(MemoryDevice::new(20)));
    let mut negotiation = Negotiation::new(&exports, Tls::Optional, 0);
    assert_eq!(ask(&mut negotiation, option::STARTTLS, &[]), [option_reply::ERR_POLICY]);
    let mut negotiation = Negotiation::new(&exports, Tls::Optional, 1);
    assert_eq!(ask(&mut negotiation, option::STARTTLS, &[]), [option_reply::ACK]);
}

#[test]
fn preferred_block_sizes_are_powers_of_two() {
    let of = |block_size| preferred_block(&Geometry { size: 1, block_size, optimal_io: 1, read_only: false });
    assert_eq!([0, 512, 4096, 5000, u32::MAX].map(of), [512, 512, 4096, 8192, 1 << 20]);
}

/// Whatever the data, every option is answered by well-formed replies, of which the last is final.
#[test]
fn any_option_with_any_data_is_answered() {
    let exports = One(Arc::new(MemoryDevice::new(3)));
    let mut state = 0x1234_5678_9ABC_DEF1u64;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let good = [string("only"), vec![0, 0, 0, 1], string("base:allocation")].concat();
    for tls in [Tls::None, Tls::Optional, Tls::Required, Tls::Running] {
        let mut negotiation = Negotiation::new(&exports, tls, 3);
        for _ in 0..10_000 {
            let mut data = good.clone();
            data.truncate(random(40) as usize);
            for _ in 0..random(3) {
                if let Some(at) = random(100).checked_rem(data.len() as u64) {
                    data[at as usize] = random(256) as u8;
                }
            }
            let option = random(14) as u32;
            let mut out = BytesMut::new();
            match negotiation.option(option, &data, &mut out) {
                _ if option == option::EXPORT_NAME => {}
                Step::Close => assert_eq!(kinds(&out, option), [option_reply::ACK]),
                Step::StartTls => assert!(matches!(tls, Tls::Optional | Tls::Required)),
                Step::Options | Step::Transmit(_) => {
                    let kinds = kinds(&out, option);
                    let last = *kinds.last().unwrap();
                    assert!(last == option_reply::ACK || last & option_reply::ERROR_BIT != 0);
                    assert!(tls != Tls::Required || option == option::STARTTLS || last == option_reply::ERR_TLS_REQD);
                }
            }
        }
    }
}
