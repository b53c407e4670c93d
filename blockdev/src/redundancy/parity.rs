//! P and Q parity over the columns of a stripe (H. P. Anvin, "The mathematics of RAID-6").
//!
//! A stripe has `k` data columns and `m` parity columns of equal length, numbered data first, then P, then Q:
//!
//! ```text
//! P = D0 + D1 + ...            (exclusive or)
//! Q = D0 + 2 D1 + 4 D2 + ...   (in GF(2^8))
//! ```
//!
//! Any `m` columns can be lost. Every reconstruction is a [`Recovery`]: a sum of surviving columns times constants. A
//! degraded read of one column makes one such sum and reads only the columns it names.

use super::gf;
pub use super::simd::Kernel;

/// Most data columns of a stripe.
pub const MAX_DATA: usize = 32;
/// Most parity columns of a stripe.
pub const MAX_PARITY: usize = 2;

/// Bytes of each column worked on at a time where several passes over the same columns are made, so that they stay in
/// the processor's cache.
const BLOCKING: usize = 4096;

/// Too few columns survive to give what is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotEnough {
    /// Columns present.
    pub present: usize,
    /// Columns needed.
    pub needed: usize,
}

impl std::fmt::Display for NotEnough {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} columns of the stripe are left, {} are needed", self.present, self.needed)
    }
}

impl std::error::Error for NotEnough {}

/// Computes the parity of `data`: exclusive or to `p`, Reed-Solomon to `q`.
///
/// # Panics
/// When there are more than [`MAX_DATA`] columns or the lengths differ.
pub fn encode(data: &[&[u8]], p: Option<&mut [u8]>, q: Option<&mut [u8]>) {
    encode_with(Kernel::best(), data, p, q);
}

/// [`encode`] with a given instruction set, which must be available.
///
/// # Panics
/// As [`encode`], and when the instruction set is not available.
pub fn encode_with(kernel: Kernel, data: &[&[u8]], p: Option<&mut [u8]>, q: Option<&mut [u8]>) {
    assert!(data.len() <= MAX_DATA, "{} data columns", data.len());
    match (p, q) {
        (Some(p), Some(q)) => kernel.encode::<true, true>(data, p, q),
        (Some(p), None) => kernel.encode::<true, false>(data, p, &mut []),
        (None, Some(q)) => kernel.encode::<false, true>(data, &mut [], q),
        (None, None) => {}
    }
}

/// Whether `p` and `q` are the parity of `data`. Lengths that differ make it false.
pub fn verify(data: &[&[u8]], p: Option<&[u8]>, q: Option<&[u8]>) -> bool {
    let Some(len) = p.or(q).map(<[u8]>::len) else { return true };
    if data.len() > MAX_DATA || data.iter().copied().chain(p).chain(q).any(|column| column.len() != len) {
        return false;
    }
    let (mut p_room, mut q_room) = ([0; BLOCKING], [0; BLOCKING]);
    let mut slices: [&[u8]; MAX_DATA] = [&[]; MAX_DATA];
    (0..len).step_by(BLOCKING).all(|from| {
        let range = from..len.min(from + BLOCKING);
        for (slice, column) in slices.iter_mut().zip(data) {
            *slice = &column[range.clone()];
        }
        let data = &slices[..data.len()];
        let (p_room, q_room) = (&mut p_room[..range.len()], &mut q_room[..range.len()]);
        encode(data, p.is_some().then_some(&mut *p_room), q.is_some().then_some(&mut *q_room));
        p.is_none_or(|p| p[range.clone()] == *p_room) && q.is_none_or(|q| q[range] == *q_room)
    })
}

/// How to compute one column from others: the sum of `coefficient * column` over all terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    wanted: usize,
    terms: Vec<(usize, u8)>,
}

impl Recovery {
    /// Finds how to compute column `wanted` of a stripe of `k` data and `m` parity columns from those for which
    /// `present` is true (`wanted` itself is never used). Uses no more than `k` columns, and P rather than Q.
    ///
    /// # Panics
    /// When `k` is not in 1..=[`MAX_DATA`], `m` exceeds [`MAX_PARITY`], or `wanted` or the length of `present` does
    /// not fit the stripe.
    pub fn plan(k: usize, m: usize, present: &[bool], wanted: usize) -> Result<Self, NotEnough> {
        assert!((1..=MAX_DATA).contains(&k) && m <= MAX_PARITY, "no stripe of {k}+{m} columns");
        assert!(present.len() == k + m && wanted < k + m, "column {wanted} of a stripe of {k}+{m}");
        let usable = |column: usize| column < k + m && column != wanted && present[column];
        let (p, q) = (k, k + 1);

        // Coefficients by column of: data, P, Q.
        let mut sum = [0u8; MAX_DATA + MAX_PARITY];
        let weight = |column: usize, data: usize| if column == p { 1 } else { gf::power(data) };
        if wanted < k {
            sum[wanted] = 1;
        } else {
            (0..k).for_each(|i| sum[i] = weight(wanted, i));
        }
        // Each unusable data column in the sum is replaced by what equals it.
        let lost: Vec<usize> = (0..k).filter(|&i| !usable(i) && sum[i] != 0).collect();
        let all_lost: Vec<usize> = (0..k).filter(|&i| !usable(i)).collect();
        for &x in &lost {
            let factor = std::mem::take(&mut sum[x]);
            match all_lost[..] {
                [_] if usable(p) || usable(q) => {
                    let parity = if usable(p) { p } else { q };
                    let scale = gf::mul(factor, gf::inverse(weight(parity, x)));
                    for i in (0..k).filter(|&i| i != x) {
                        sum[i] ^= gf::mul(scale, weight(parity, i));
                    }
                    sum[parity] ^= scale;
                }
                [a, b] if usable(p) && usable(q) => {
                    // P' = Dx + Dy, Q' = 2^x Dx + 2^y Dy, hence Dx = (2^y P' + Q') / (2^x + 2^y).
                    let y = if x == a { b } else { a };
                    let scale = gf::mul(factor, gf::inverse(gf::power(x) ^ gf::power(y)));
                    for i in (0..k).filter(|&i| i != x && i != y) {
                        sum[i] ^= gf::mul(scale, gf::power(y) ^ gf::power(i));
                    }
                    sum[p] ^= gf::mul(scale, gf::power(y));
                    sum[q] ^= scale;
                }
                _ => return Err(NotEnough { present: (0..k + m).filter(|&i| usable(i)).count(), needed: k }),
            }
        }
        let terms = (0..k + m).filter(|&i| sum[i] != 0).map(|i| (i, sum[i])).collect();
        Ok(Self { wanted, terms })
    }

    /// The column this computes.
    pub fn wanted(&self) -> usize {
        self.wanted
    }

    /// The columns that must be read, ascending.
    pub fn sources(&self) -> impl Iterator<Item = usize> + '_ {
        self.terms.iter().map(|&(column, _)| column)
    }

    /// Computes the column. `column` gives each of [`sources`](Self::sources); all must be as long as `out`.
    ///
    /// # Panics
    /// When lengths differ.
    pub fn apply<'a>(&self, column: impl Fn(usize) -> &'a [u8], out: &mut [u8]) {
        self.apply_with(Kernel::best(), column, out);
    }

    /// [`apply`](Self::apply) with a given instruction set, which must be available.
    ///
    /// # Panics
    /// As [`apply`](Self::apply), and when the instruction set is not available.
    pub fn apply_with<'a>(&self, kernel: Kernel, column: impl Fn(usize) -> &'a [u8], out: &mut [u8]) {
        if self.terms.iter().all(|&(_, coefficient)| coefficient == 1) {
            let sources: Vec<&[u8]> = self.sources().map(column).collect();
            kernel.encode::<true, false>(&sources, out, &mut []);
        } else {
            let terms: Vec<(u8, &[u8])> = self.terms.iter().map(|&(i, coefficient)| (coefficient, column(i))).collect();
            kernel.combine(&terms, out);
        }
    }
}

/// One column of a stripe given to [`reconstruct`].
#[derive(Debug)]
pub enum Column<'a> {
    /// Read and good.
    Present(&'a [u8]),
    /// Not at hand, and not wanted.
    Missing,
    /// Not at hand, to be computed into this.
    Wanted(&'a mut [u8]),
}

/// Computes all wanted columns of a stripe of `k` data columns followed by `m` parity columns.
///
/// # Panics
/// When the number of columns is not `k + m`, the stripe is one [`Recovery::plan`] refuses, or lengths differ.
pub fn reconstruct(columns: &mut [Column<'_>], k: usize, m: usize) -> Result<(), NotEnough> {
    reconstruct_with(Kernel::best(), columns, k, m)
}

/// [`reconstruct`] with a given instruction set, which must be available.
///
/// # Panics
/// As [`reconstruct`], and when the instruction set is not available.
pub fn reconstruct_with(kernel: Kernel, columns: &mut [Column<'_>], k: usize, m: usize) -> Result<(), NotEnough> {
    let present: Vec<bool> = columns.iter().map(|c| matches!(c, Column::Present(_))).collect();
    let wanted = (0..columns.len()).filter(|&i| matches!(columns[i], Column::Wanted(_)));
    let plans = wanted.map(|i| Recovery::plan(k, m, &present, i)).collect::<Result<Vec<_>, _>>()?;

    let mut sources: Vec<&[u8]> = vec![&[]; columns.len()];
    let mut outputs: Vec<&mut [u8]> = Vec::with_capacity(plans.len());
    for (column, source) in columns.iter_mut().zip(&mut sources) {
        match column {
            Column::Present(bytes) => *source = bytes,
            Column::Wanted(bytes) => outputs.push(bytes),
            Column::Missing => {}
        }
    }
    let len = outputs.first().map_or(0, |out| out.len());
    assert!(
        outputs.iter().all(|out| out.len() == len)
            && plans.iter().flat_map(Recovery::sources).all(|i| sources[i].len() == len),
        "columns of a stripe differ in length"
    );
    let blocking = if plans.len() > 1 { BLOCKING } else { len.max(1) };
    for from in (0..len).step_by(blocking) {
        let range = from..len.min(from + blocking);
        for (plan, out) in plans.iter().zip(&mut outputs) {
            plan.apply_with(kernel, |i| &sources[i][range.clone()], &mut out[range.clone()]);
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "parity/tests.rs"]
mod tests;
