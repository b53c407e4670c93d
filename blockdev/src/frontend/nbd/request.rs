//! One request: is it permitted, what does it start on the device, and what is the reply.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;

use super::output::{Charge, Output};
use super::wire::{self, Descriptor, Errno, Request, chunk, command, command_flag};
use super::{MetaContext, REQUEST_BYTES_MAX, context};
use crate::env::BoxFuture;
use crate::error::{ErrorKind, Result};
use crate::frontend::{BlockDevice, Geometry};

/// Most extents in one chunk of a reply: 32 KiB.
const EXTENTS_MAX: usize = 4096;

/// Shortest run of zeroes within a read that is worth a chunk of its own, in bytes.
const HOLE_BYTES_MIN: usize = 64 << 10;

/// Step in which runs of zeroes are looked for, in bytes.
const GRAIN: usize = 4096;

static ZEROES: [u8; GRAIN] = [0; GRAIN];

/// What requests of a connection work on.
pub(super) struct Target {
    pub(super) device: Arc<dyn BlockDevice>,
    pub(super) structured: bool,
    pub(super) contexts: Vec<Arc<dyn MetaContext>>,
}

/// Why a request is refused without asking the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused(pub(super) Errno, pub(super) &'static str);

/// Whether a request makes sense on a device of this geometry.
pub(super) fn check(request: &Request, geometry: &Geometry, contexts: usize) -> std::result::Result<(), Refused> {
    let allowed = match request.command {
        command::READ => command_flag::DF,
        command::WRITE | command::FLUSH | command::TRIM => 0,
        command::WRITE_ZEROES => command_flag::NO_HOLE | command_flag::FAST_ZERO,
        command::BLOCK_STATUS => command_flag::REQ_ONE,
        _ => return Err(Refused(Errno::Inval, "unknown command")),
    };
    // FUA is valid with every command, by the protocol.
    if request.flags & !(allowed | command_flag::FUA) != 0 {
        return Err(Refused(Errno::Inval, "flag that does not go with the command"));
    }
    let changes = matches!(request.command, command::WRITE | command::TRIM | command::WRITE_ZEROES);
    if changes && geometry.read_only {
        return Err(Refused(Errno::Perm, "the export is read-only"));
    }
    let beyond = request.offset.checked_add(request.len.into()).is_none_or(|end| end > geometry.size);
    match request.command {
        command::FLUSH if request.offset != 0 || request.len != 0 => {
            Err(Refused(Errno::Inval, "a flush has no offset and no length"))
        }
        command::READ | command::WRITE if request.len > REQUEST_BYTES_MAX => {
            Err(Refused(Errno::Inval, "longer than the maximum block size of 32 MiB"))
        }
        command::WRITE | command::WRITE_ZEROES if beyond => Err(Refused(Errno::NoSpc, "beyond the end of the export")),
        _ if beyond => Err(Refused(Errno::Inval, "beyond the end of the export")),
        command::BLOCK_STATUS if contexts == 0 => Err(Refused(Errno::Inval, "no metadata context was selected")),
        command::BLOCK_STATUS if request.len == 0 => Err(Refused(Errno::Inval, "block status of nothing")),
        _ => Ok(()),
    }
}

/// Bytes of memory a request takes from its start until its reply is sent.
pub(super) fn cost(request: &Request, contexts: usize) -> usize {
    match request.command {
        command::READ | command::WRITE => request.len as usize,
        command::BLOCK_STATUS => contexts * EXTENTS_MAX * size_of::<Descriptor>(),
        _ => 0,
    }
}

type Extents = Vec<Vec<Descriptor>>;

/// A request at work on the device.
pub(super) enum Work {
    Read(BoxFuture<Result<Bytes>>),
    Change(BoxFuture<Result<()>>),
    Status(BoxFuture<Result<Extents>>),
}

/// What the device answered.
pub(super) enum Answer {
    Data(Bytes),
    Done,
    Status(Extents),
}

impl Target {
    /// Starts a request that [`check`] let pass; `payload` is that of a write.
    pub(super) fn start(&self, request: &Request, payload: Bytes) -> Work {
        let Request { flags, offset, .. } = *request;
        let len = u64::from(request.len);
        let fua = flags & command_flag::FUA != 0;
        let device = &self.device;
        match request.command {
            command::FLUSH => Work::Change(device.flush()),
            command::BLOCK_STATUS => Work::Status(self.status(request)),
            _ if len == 0 => Work::Change(Box::pin(std::future::ready(Ok(())))),
            command::READ => Work::Read(device.read(offset, request.len as usize)),
            command::WRITE => Work::Change(device.write(offset, payload, fua)),
            command::TRIM if fua => {
                let device = Arc::clone(device);
                Work::Change(Box::pin(async move {
                    device.discard(offset, len).await?;
                    device.flush().await
                }))
            }
            command::TRIM => Work::Change(device.discard(offset, len)),
            // Zeroes never take space here, so NO_HOLE has nothing to reserve, and every request is a fast one.
            _ => Work::Change(device.write_zeroes(offset, len, fua)),
        }
    }

    fn status(&self, request: &Request) -> BoxFuture<Result<Extents>> {
        let Request { offset, len, .. } = *request;
        let max = if request.flags & command_flag::REQ_ONE != 0 { 1 } else { EXTENTS_MAX };
        let device = Arc::clone(&self.device);
        let contexts = self.contexts.clone();
        Box::pin(async move {
            let mut all = Vec::with_capacity(contexts.len());
            for each in &contexts {
                let descriptors = each.status(&device, offset, len, max).await?;
                all.push(context::check(descriptors, len, max, each.name())?);
            }
            Ok(all)
        })
    }

    /// Queues the reply. `charge` goes with the payload if there is one, and is otherwise given back.
    pub(super) fn reply(
        &self,
        request: &Request,
        answer: Result<Answer>,
        charge: Charge,
        output: &mut Output,
    ) -> Option<Charge> {
        let cookie = request.cookie;
        match answer {
            Err(error) => {
                tracing::debug!(command = request.command, offset = request.offset, len = request.len, %error, "request failed");
                self.refuse(cookie, errno(error.kind()), &error.to_string(), output);
                Some(charge)
            }
            Ok(Answer::Data(data)) if data.len() != request.len as usize => {
                tracing::error!(wanted = request.len, got = data.len(), "device answered a read with another length");
                self.refuse(cookie, Errno::Io, "the device answered with another length", output);
                Some(charge)
            }
            Ok(Answer::Data(data)) if !self.structured => {
                output.push_header(wire::simple_reply(cookie, 0));
                output.push_data(data, charge);
                None
            }
            Ok(Answer::Data(data)) => self.structured_read(request, data, charge, output),
            Ok(Answer::Done) if self.structured && request.command == command::READ => {
                output.push_header(wire::none_chunk(cookie));
                Some(charge)
            }
            Ok(Answer::Done) => {
                output.push_header(wire::simple_reply(cookie, 0));
                Some(charge)
            }
            Ok(Answer::Status(all)) => {
                let mut charge = Some(charge);
                for (id, descriptors) in all.iter().enumerate() {
                    let last = id + 1 == all.len();
                    let flags = if last { chunk::FLAG_DONE } else { 0 };
                    let data = wire::status_chunk(cookie, flags, id as u32, descriptors).freeze();
                    output.push_data(data, if last { charge.take().unwrap_or_default() } else { Charge::default() });
                }
                charge
            }
        }
    }

    /// Queues an error reply.
    pub(super) fn refuse(&self, cookie: u64, errno: Errno, message: &str, output: &mut Output) {
        if self.structured {
            output.push_data(wire::error_chunk(cookie, errno, message).freeze(), Charge::default());
        } else {
            output.push_header(wire::simple_reply(cookie, errno as u32));
        }
    }

    fn structured_read(&self, request: &Request, data: Bytes, charge: Charge, output: &mut Output) -> Option<Charge> {
        let Request { cookie, offset, len, .. } = *request;
        if is_zero(&data) {
            output.push_header(wire::hole_chunk(cookie, chunk::FLAG_DONE, offset, len));
            return Some(charge);
        }
        if request.flags & command_flag::DF != 0 || data.len() < 2 * HOLE_BYTES_MIN {
            output.push_header(wire::data_chunk(cookie, chunk::FLAG_DONE, offset, len));
            output.push_data(data, charge);
            return None;
        }
        let mut charge = Some(charge);
        let runs = runs(&data, offset);
        let last_data = runs.iter().rposition(|run| !run.zero);
        for (index, run) in runs.iter().enumerate() {
            let flags = if run.end == data.len() { chunk::FLAG_DONE } else { 0 };
            let (at, len) = (offset + run.start as u64, (run.end - run.start) as u32);
            if run.zero {
                output.push_header(wire::hole_chunk(cookie, flags, at, len));
            } else {
                output.push_header(wire::data_chunk(cookie, flags, at, len));
                // The pieces share one allocation, which is free when the last one is sent.
                let charge =
                    if Some(index) == last_data { charge.take().unwrap_or_default() } else { Charge::default() };
                output.push_data(data.slice(run.start..run.end), charge);
            }
        }
        charge
    }
}

impl Future for Work {
    type Output = Result<Answer>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::Read(future) => future.as_mut().poll(cx).map_ok(Answer::Data),
            Self::Change(future) => future.as_mut().poll(cx).map_ok(|()| Answer::Done),
            Self::Status(future) => future.as_mut().poll(cx).map_ok(Answer::Status),
        }
    }
}

/// The protocol's number for a kind of error.
pub(super) fn errno(kind: ErrorKind) -> Errno {
    match kind {
        ErrorKind::NoSpace => Errno::NoSpc,
        ErrorKind::ReadOnly => Errno::Perm,
        ErrorKind::InvalidArgument => Errno::Inval,
        ErrorKind::Unsupported => Errno::NotSup,
        ErrorKind::Unavailable | ErrorKind::Fenced => Errno::Shutdown,
        ErrorKind::Io | ErrorKind::Corrupt | ErrorKind::NotFound | ErrorKind::AlreadyExists | ErrorKind::Busy => {
            Errno::Io
        }
    }
}

fn is_zero(data: &[u8]) -> bool {
    data.chunks(GRAIN).all(|part| *part == ZEROES[..part.len()])
}

/// A part of a read that is all zeroes, or not.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    start: usize,
    end: usize,
    zero: bool,
}

/// Cuts `data`, which lies at `offset` of the device, into long runs of zeroes and what is between them.
fn runs(data: &[u8], offset: u64) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut at = 0;
    while at < data.len() {
        let to_grain = GRAIN - (offset.wrapping_add(at as u64) % GRAIN as u64) as usize;
        let end = data.len().min(at + to_grain);
        let zero = is_zero(&data[at..end]);
        match runs.last_mut() {
            Some(last) if last.zero == zero => last.end = end,
            _ => runs.push(Run { start: at, end, zero }),
        }
        at = end;
    }
    let mut merged: Vec<Run> = Vec::with_capacity(runs.len());
    for mut run in runs {
        run.zero &= run.end - run.start >= HOLE_BYTES_MIN;
        match merged.last_mut() {
            Some(last) if last.zero == run.zero => last.end = run.end,
            _ => merged.push(run),
        }
    }
    merged
}
