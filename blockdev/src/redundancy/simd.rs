//! The two inner loops of parity, by instruction set.
//!
//! * `encode`: P and Q of a stripe in one pass. Q by Horner's rule from the last column down: `q = 2 q + d`.
//! * `combine`: a sum of columns times constants, which is what every reconstruction comes down to.
//!
//! The scalar form is the oracle of the others and does what is left behind the last whole vector.

use super::gf;

/// An instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// One byte at a time, by table: the oracle.
    Scalar,
    /// Words in plain Rust, which compilers turn into whatever vectors the target has.
    Plain,
    /// 32-byte vectors with byte shuffles.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 64-byte vectors with Galois-field instructions.
    #[cfg(target_arch = "x86_64")]
    Avx512Gfni,
}

impl Kernel {
    /// The fastest this processor has.
    pub fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if Self::Avx512Gfni.is_available() {
                return Self::Avx512Gfni;
            }
            if Self::Avx2.is_available() {
                return Self::Avx2;
            }
        }
        Self::Plain
    }

    /// Whether this processor has it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar | Self::Plain => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => is_x86_feature_detected!("avx2"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Gfni => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("gfni")
            }
        }
    }

    /// All this processor has.
    pub fn available() -> Vec<Self> {
        let all = [
            Self::Scalar,
            Self::Plain,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Gfni,
        ];
        all.into_iter().filter(|k| k.is_available()).collect()
    }

    /// Writes the exclusive or of `data` to `p` if `P`, and the sum of `2^i data[i]` to `q` if `Q`; an unused output
    /// is empty.
    ///
    /// # Panics
    /// When lengths differ.
    pub fn encode<const P: bool, const Q: bool>(self, data: &[&[u8]], p: &mut [u8], q: &mut [u8]) {
        let len = if P { p.len() } else { q.len() };
        assert!(data.iter().all(|d| d.len() == len) && p.len() == if P { len } else { 0 });
        assert!(q.len() == if Q { len } else { 0 });
        let done = match self {
            Self::Scalar => 0,
            Self::Plain => plain::encode::<P, Q>(data, len, p, q),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                assert!(self.is_available());
                // SAFETY: the processor has the features; every slice is `len` bytes long or an unused output.
                unsafe { avx2::encode::<P, Q>(data, len, p, q) }
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Gfni => {
                assert!(self.is_available());
                // SAFETY: the processor has the features; every slice is `len` bytes long or an unused output.
                unsafe { avx512::encode::<P, Q>(data, len, p, q) }
            }
        };
        for at in done..len {
            let (mut xor, mut horner) = (0, 0);
            for column in data.iter().rev() {
                xor ^= column[at];
                horner = gf::double(horner) ^ column[at];
            }
            if P {
                p[at] = xor;
            }
            if Q {
                q[at] = horner;
            }
        }
    }

    /// Writes the sum of `coefficient * column` over all terms to `out`.
    ///
    /// # Panics
    /// When lengths differ.
    pub fn combine(self, terms: &[(u8, &[u8])], out: &mut [u8]) {
        let len = out.len();
        assert!(terms.iter().all(|(_, column)| column.len() == len));
        let done = match self {
            Self::Scalar => 0,
            Self::Plain => plain::combine(terms, out),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                assert!(self.is_available());
                // SAFETY: the processor has the features; every column is as long as `out`.
                unsafe { avx2::combine(terms, out) }
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Gfni => {
                assert!(self.is_available());
                // SAFETY: the processor has the features; every column is as long as `out`.
                unsafe { avx512::combine(terms, out) }
            }
        };
        for at in done..len {
            out[at] = terms.iter().fold(0, |sum, (c, column)| sum ^ gf::mul(*c, column[at]));
        }
    }
}

mod plain {
    /// Bytes of one step.
    const STEP: usize = 64;
    const WORDS: usize = STEP / 8;
    type Words = [u64; WORDS];

    fn load(column: &[u8], at: usize) -> Words {
        let mut words = [0; WORDS];
        for (word, bytes) in words.iter_mut().zip(column[at..at + STEP].chunks_exact(8)) {
            *word = u64::from_ne_bytes(bytes.try_into().unwrap_or_default());
        }
        words
    }

    fn store(words: &Words, column: &mut [u8], at: usize) {
        for (word, bytes) in words.iter().zip(column[at..at + STEP].chunks_exact_mut(8)) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
    }

    /// Doubles each of the eight bytes of a word.
    fn double(word: u64) -> u64 {
        let carries = word >> 7 & 0x0101_0101_0101_0101;
        // Shifts rather than a product with 0x1D: not every vector unit multiplies words.
        (word << 1 & 0xFEFE_FEFE_FEFE_FEFE) ^ carries ^ carries << 2 ^ carries << 3 ^ carries << 4
    }

    pub fn encode<const P: bool, const Q: bool>(data: &[&[u8]], len: usize, p: &mut [u8], q: &mut [u8]) -> usize {
        let whole = len - len % STEP;
        for at in (0..whole).step_by(STEP) {
            let (mut xor, mut horner) = ([0; WORDS], [0; WORDS]);
            for column in data.iter().rev() {
                let words = load(column, at);
                for i in 0..WORDS {
                    xor[i] ^= words[i];
                    horner[i] = double(horner[i]) ^ words[i];
                }
            }
            if P {
                store(&xor, p, at);
            }
            if Q {
                store(&horner, q, at);
            }
        }
        whole
    }

    pub fn combine(terms: &[(u8, &[u8])], out: &mut [u8]) -> usize {
        let whole = out.len() - out.len() % STEP;
        for at in (0..whole).step_by(STEP) {
            // Horner's rule over the bits of the coefficients.
            let mut sum: Words = [0; WORDS];
            for bit in (0..8).rev() {
                sum.iter_mut().for_each(|word| *word = double(*word));
                for (coefficient, column) in terms {
                    if coefficient >> bit & 1 != 0 {
                        let words = load(column, at);
                        for i in 0..WORDS {
                            sum[i] ^= words[i];
                        }
                    }
                }
            }
            store(&sum, out, at);
        }
        whole
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use crate::redundancy::gf;

    const VECTOR: usize = 32;
    /// Vectors of one step: enough to hide the latency of the doubling chain.
    const LANES: usize = 4;
    const STEP: usize = VECTOR * LANES;

    /// # Safety
    /// The processor has AVX2; all data columns and used outputs are `len` bytes long.
    #[target_feature(enable = "avx2")]
    pub unsafe fn encode<const P: bool, const Q: bool>(
        data: &[&[u8]],
        len: usize,
        p: &mut [u8],
        q: &mut [u8],
    ) -> usize {
        let whole = len - len % STEP;
        let polynomial = _mm256_set1_epi8(0x1D);
        let zero = _mm256_setzero_si256();
        for at in (0..whole).step_by(STEP) {
            let (mut xor, mut horner) = ([zero; LANES], [zero; LANES]);
            for column in data.iter().rev() {
                for lane in 0..LANES {
                    // SAFETY: `at + STEP <= len`, the length of the column.
                    let d = unsafe { _mm256_loadu_si256(column.as_ptr().add(at + lane * VECTOR).cast()) };
                    if P {
                        xor[lane] = _mm256_xor_si256(xor[lane], d);
                    }
                    if Q {
                        let carry = _mm256_and_si256(_mm256_cmpgt_epi8(zero, horner[lane]), polynomial);
                        let doubled = _mm256_xor_si256(_mm256_add_epi8(horner[lane], horner[lane]), carry);
                        horner[lane] = _mm256_xor_si256(doubled, d);
                    }
                }
            }
            for lane in 0..LANES {
                if P {
                    // SAFETY: `at + STEP <= len`, the length of `p`.
                    unsafe { _mm256_storeu_si256(p.as_mut_ptr().add(at + lane * VECTOR).cast(), xor[lane]) };
                }
                if Q {
                    // SAFETY: `at + STEP <= len`, the length of `q`.
                    unsafe { _mm256_storeu_si256(q.as_mut_ptr().add(at + lane * VECTOR).cast(), horner[lane]) };
                }
            }
        }
        whole
    }

    /// # Safety
    /// The processor has AVX2; all columns are as long as `out`.
    #[target_feature(enable = "avx2")]
    pub unsafe fn combine(terms: &[(u8, &[u8])], out: &mut [u8]) -> usize {
        let whole = out.len() - out.len() % STEP;
        let nibble = _mm256_set1_epi8(0x0F);
        let tables: Vec<(__m256i, __m256i, &[u8])> = terms
            .iter()
            .map(|&(coefficient, column)| {
                let (low, high) = gf::nibble_tables(coefficient);
                // SAFETY: both tables are 16 bytes long.
                let (low, high) =
                    unsafe { (_mm_loadu_si128(low.as_ptr().cast()), _mm_loadu_si128(high.as_ptr().cast())) };
                (_mm256_broadcastsi128_si256(low), _mm256_broadcastsi128_si256(high), column)
            })
            .collect();
        for at in (0..whole).step_by(STEP) {
            let mut sum = [_mm256_setzero_si256(); LANES];
            for &(low, high, column) in &tables {
                for (lane, sum) in sum.iter_mut().enumerate() {
                    // SAFETY: `at + STEP <= whole`, at most the length of the column.
                    let d = unsafe { _mm256_loadu_si256(column.as_ptr().add(at + lane * VECTOR).cast()) };
                    let low_part = _mm256_shuffle_epi8(low, _mm256_and_si256(d, nibble));
                    let high_part = _mm256_shuffle_epi8(high, _mm256_and_si256(_mm256_srli_epi64(d, 4), nibble));
                    *sum = _mm256_xor_si256(*sum, _mm256_xor_si256(low_part, high_part));
                }
            }
            for (lane, sum) in sum.into_iter().enumerate() {
                // SAFETY: `at + STEP <= whole`, at most the length of `out`.
                unsafe { _mm256_storeu_si256(out.as_mut_ptr().add(at + lane * VECTOR).cast(), sum) };
            }
        }
        whole
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use crate::redundancy::gf;

    const VECTOR: usize = 64;
    /// Vectors of one step: enough to hide the latency of the doubling chain.
    const LANES: usize = 4;
    const STEP: usize = VECTOR * LANES;

    /// # Safety
    /// The processor has AVX-512 F and BW and GFNI; all data columns and used outputs are `len` bytes long.
    #[target_feature(enable = "avx512f,avx512bw,gfni")]
    pub unsafe fn encode<const P: bool, const Q: bool>(
        data: &[&[u8]],
        len: usize,
        p: &mut [u8],
        q: &mut [u8],
    ) -> usize {
        let whole = len - len % STEP;
        let double = _mm512_set1_epi64(gf::affine_matrix(2).cast_signed());
        for at in (0..whole).step_by(STEP) {
            let (mut xor, mut horner) = ([_mm512_setzero_si512(); LANES], [_mm512_setzero_si512(); LANES]);
            for column in data.iter().rev() {
                for lane in 0..LANES {
                    // SAFETY: `at + STEP <= len`, the length of the column.
                    let d = unsafe { _mm512_loadu_si512(column.as_ptr().add(at + lane * VECTOR).cast()) };
                    if P {
                        xor[lane] = _mm512_xor_si512(xor[lane], d);
                    }
                    if Q {
                        horner[lane] = _mm512_xor_si512(_mm512_gf2p8affine_epi64_epi8::<0>(horner[lane], double), d);
                    }
                }
            }
            for lane in 0..LANES {
                if P {
                    // SAFETY: `at + STEP <= len`, the length of `p`.
                    unsafe { _mm512_storeu_si512(p.as_mut_ptr().add(at + lane * VECTOR).cast(), xor[lane]) };
                }
                if Q {
                    // SAFETY: `at + STEP <= len`, the length of `q`.
                    unsafe { _mm512_storeu_si512(q.as_mut_ptr().add(at + lane * VECTOR).cast(), horner[lane]) };
                }
            }
        }
        whole
    }

    /// # Safety
    /// The processor has AVX-512 F and BW and GFNI; all columns are as long as `out`.
    #[target_feature(enable = "avx512f,avx512bw,gfni")]
    pub unsafe fn combine(terms: &[(u8, &[u8])], out: &mut [u8]) -> usize {
        let whole = out.len() - out.len() % STEP;
        let matrices: Vec<(__m512i, &[u8])> = terms
            .iter()
            .map(|&(coefficient, column)| (_mm512_set1_epi64(gf::affine_matrix(coefficient).cast_signed()), column))
            .collect();
        for at in (0..whole).step_by(STEP) {
            let mut sum = [_mm512_setzero_si512(); LANES];
            for &(matrix, column) in &matrices {
                for (lane, sum) in sum.iter_mut().enumerate() {
                    // SAFETY: `at + STEP <= whole`, at most the length of the column.
                    let d = unsafe { _mm512_loadu_si512(column.as_ptr().add(at + lane * VECTOR).cast()) };
                    *sum = _mm512_xor_si512(*sum, _mm512_gf2p8affine_epi64_epi8::<0>(d, matrix));
                }
            }
            for (lane, sum) in sum.into_iter().enumerate() {
                // SAFETY: `at + STEP <= whole`, at most the length of `out`.
                unsafe { _mm512_storeu_si512(out.as_mut_ptr().add(at + lane * VECTOR).cast(), sum) };
            }
        }
        whole
    }
}
