//! Blocking system calls on a few threads: for requests io_uring cannot do, and for systems that do not allow io_uring
//! (containers whose seccomp profile forbids it, `kernel.io_uring_disabled`).

use std::sync::OnceLock;

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::request::{Request, Verdict};
use super::ring::answer;

/// Threads of a full pool: as many requests are with the devices at a time.
const THREADS: usize = 16;

/// A pool of threads.
pub(super) struct Threads {
    // The queue itself needs no bound: each request in it holds a place at its disk's gate.
    queue: Sender<Box<Request>>,
    running: usize,
}

impl Threads {
    /// The pool that does all requests where there is no ring.
    pub(super) fn shared() -> &'static Self {
        static SHARED: OnceLock<Threads> = OnceLock::new();
        SHARED.get_or_init(|| Self::start("disk-io", THREADS))
    }

    /// A thread for the requests of one disk that only exist as blocking calls. It ends with this handle, once what is queued is done.
    pub(super) fn for_discards() -> Self {
        Self::start("disk-discard", 1)
    }

    fn start(name: &str, count: usize) -> Self {
        let (queue, requests) = unbounded();
        let mut running = 0;
        for _ in 0..count {
            let requests = requests.clone();
            match std::thread::Builder::new().name(name.into()).spawn(move || run(&requests)) {
                Ok(_) => running += 1,
                Err(e) => {
                    tracing::warn!("only {running} of {count} threads for disk requests: {e}");
                    break;
                }
            }
        }
        Self { queue, running }
    }

    /// Hands a request over.
    pub(super) fn issue(&self, request: Box<Request>) {
        if self.running == 0 {
            return process(request);
        }
        // The receivers live as long as this sender.
        let _ = self.queue.send(request);
    }
}

fn run(requests: &Receiver<Box<Request>>) {
    super::prefer_latency();
    while let Ok(request) = requests.recv() {
        process(request);
    }
}

fn process(mut request: Box<Request>) {
    let result = loop {
        let answer = request.perform();
        match request.settle(answer) {
            Verdict::Again => {}
            Verdict::Done(result) => break result,
        }
    };
    answer(request, result);
}
