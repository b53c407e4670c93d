//! Whole rows of an extent, with the columns that were lost computed from the others: what rebuilding reads.

use bytes::Bytes;
use futures::future::join_all;

use super::array::{DiskArray, Extent};
use super::parity::{self, Recovery};
use super::requests::Requests;
use crate::disk::AlignedBuf;
use crate::error::{Error, Result};

/// The same bytes of every column's chunk.
#[derive(Clone)]
pub struct Rows {
    /// Content by column, data first. Parity that was neither lost nor needed is not there.
    columns: Vec<Option<Bytes>>,
    data: usize,
    strip: usize,
}

impl Rows {
    /// A column's content: every data column's, and that of parity that was lost.
    pub fn column(&self, column: usize) -> Option<&Bytes> {
        self.columns[column].as_ref()
    }

    /// Bytes of the data space that lie in these rows.
    pub fn data_len(&self) -> usize {
        self.columns[..self.data].iter().flatten().map(Bytes::len).sum()
    }

    /// The part of the data space that lies in these rows, in its order.
    pub fn data_space(&self) -> Vec<u8> {
        let data: Vec<&Bytes> = self.columns[..self.data].iter().flatten().collect();
        let len = data.first().map_or(0, |c| c.len());
        let mut out = Vec::with_capacity(len * data.len());
        for at in (0..len).step_by(self.strip) {
            data.iter().for_each(|column| out.extend_from_slice(&column[at..at + self.strip]));
        }
        out
    }
}

/// What all disks of an extent gave for the same bytes of every column's chunk.
pub struct Survey {
    /// What each column gave; none where that could not be read.
    have: Vec<Option<Bytes>>,
    /// Bit per column whose disk serves and did not give it.
    pub unreadable: u32,
}

impl Survey {
    /// The rows, data that was not given computed from the rest.
    ///
    /// # Errors
    /// When more is missing than parity can give back.
    pub fn rows(&self, extent: &Extent, strip: u32) -> Result<Rows> {
        let (k, m) = (extent.data, extent.parity);
        let present: Vec<bool> = self.have.iter().map(Option::is_some).collect();
        let len = self.have.iter().flatten().map(Bytes::len).next().unwrap_or(0);
        let mut columns = self.have.clone();
        for wanted in (0..k).filter(|&c| !present[c]) {
            let too_few = |e| Error::io(format!("segment {}: {e}", extent.segment));
            let plan = Recovery::plan(k, m, &present, wanted).map_err(too_few)?;
            let mut out = AlignedBuf::zeroed(len);
            plan.apply(|c| self.have[c].as_deref().unwrap_or_default(), &mut out);
            columns[wanted] = Some(out.freeze());
        }
        Ok(Rows { columns, data: k, strip: strip as usize })
    }

    /// Where parity that was given is not that of the data in `rows`: bits of columns, strip by strip.
    pub fn parity_mismatches(&self, rows: &Rows) -> Vec<u32> {
        let k = rows.data;
        let data: Vec<&[u8]> = rows.columns[..k].iter().map(|c| c.as_deref().unwrap_or_default()).collect();
        let len = data.first().map_or(0, |c| c.len());
        let given = |p: usize| self.have.get(k + p).and_then(Option::as_ref);
        let mut p = given(0).map(|_| AlignedBuf::recycled(len));
        let mut q = given(1).map(|_| AlignedBuf::recycled(len));
        parity::encode(&data, p.as_deref_mut(), q.as_deref_mut());
        let mut out = vec![0; len.div_ceil(rows.strip)];
        for (i, computed) in [(0, p), (1, q)] {
            let (Some(computed), Some(given)) = (computed, given(i)) else { continue };
            for (strip, (a, b)) in computed.chunks(rows.strip).zip(given.chunks(rows.strip)).enumerate() {
                out[strip] |= u32::from(a != b) << (k + i);
            }
        }
        out
    }
}

impl DiskArray {
    /// Reads bytes `row .. row + len` (whole strips) of all columns but those in the bit set `lost`.
    pub async fn survey_rows(&self, extent: &Extent, row: u64, len: usize, lost: u32, requests: &Requests) -> Survey {
        let columns = extent.columns.len();
        let read = |c: usize| async move {
            if lost >> c & 1 == 1 { None } else { Some(self.read_column_by(requests, extent, c, row, len).await) }
        };
        let reads = join_all((0..columns).map(read)).await;
        let serves = |c: usize| self.member(extent.columns[c].0).is_some_and(|m| m.online().is_some());
        let failed = |(c, read): (usize, &Option<Result<Bytes>>)| matches!(read, Some(Err(_))) && serves(c);
        let unreadable =
            reads.iter().enumerate().filter(|(c, r)| failed((*c, r))).fold(0, |bits, (c, _)| bits | 1 << c);
        Survey { have: reads.into_iter().map(|read| read?.ok()).collect(), unreadable }
    }

    /// Reads bytes `row .. row + len` (whole strips) of all columns; those in the bit set `lost`, and data that cannot be read, are computed.
    ///
    /// # Errors
    /// When more is lost than parity can give back.
    pub async fn read_rows(
        &self,
        extent: &Extent,
        row: u64,
        len: usize,
        lost: u32,
        requests: &Requests,
    ) -> Result<Rows> {
        let (k, m) = (extent.data, extent.parity);
        let mut present: Vec<bool> = (0..k + m).map(|c| lost & (1 << c) == 0).collect();
        let mut have: Vec<Option<Bytes>> = vec![None; k + m];
        let plans = loop {
            let too_few = |e| Error::io(format!("segment {}, row {row}: {e}", extent.segment));
            let plans = (0..k).filter(|&c| !present[c]).map(|c| Recovery::plan(k, m, &present, c));
            let plans = plans.collect::<std::result::Result<Vec<_>, _>>().map_err(too_few)?;
            let needed = (0..k).filter(|&c| present[c]).chain(plans.iter().flat_map(Recovery::sources));
            let mut missing: Vec<usize> = needed.filter(|&c| have[c].is_none()).collect();
            missing.sort_unstable();
            missing.dedup();
            if missing.is_empty() {
                break plans;
            }
            let reads = join_all(missing.iter().map(|&c| self.read_column_by(requests, extent, c, row, len))).await;
            for (column, read) in missing.into_iter().zip(reads) {
                present[column] = read.is_ok();
                have[column] = read.ok();
            }
        };
        let computed: Vec<(usize, Bytes)> = plans
            .iter()
            .map(|plan| {
                let mut out = AlignedBuf::zeroed(len);
                plan.apply(|c| have[c].as_deref().unwrap_or_default(), &mut out);
                (plan.wanted(), out.freeze())
            })
            .collect();
        for (column, content) in computed {
            have[column] = Some(content);
        }
        let data: Vec<&[u8]> = have[..k].iter().map(|c| c.as_deref().unwrap_or_default()).collect();
        let wanted = |p: usize| (p < m && lost & (1 << (k + p)) != 0).then(|| AlignedBuf::recycled(len));
        let (mut p, mut q) = (wanted(0), wanted(1));
        parity::encode(&data, p.as_deref_mut(), q.as_deref_mut());
        for (column, content) in [(k, p), (k + 1, q)] {
            if let Some(content) = content {
                have[column] = Some(content.freeze());
            }
        }
        Ok(Rows { columns: have, data: k, strip: self.geometry.strip_size as usize })
    }
}
