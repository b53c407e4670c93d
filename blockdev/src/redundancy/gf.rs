//! Arithmetic in GF(2^8) with the polynomial x^8 + x^4 + x^3 + x^2 + 1 (0x11D), in which 2 generates the whole
//! multiplicative group (H. P. Anvin, "The mathematics of RAID-6"). Addition is exclusive or.

/// The field's polynomial.
pub const POLYNOMIAL: u16 = 0x11D;

/// Order of the multiplicative group.
const ORDER: usize = 255;

struct Tables {
    /// `exp[i] = 2^i`, twice over, so that a sum of two logarithms needs no reduction.
    exp: [u8; 2 * ORDER],
    /// `log[2^i] = i`; `log[0]` is unused.
    log: [u8; 256],
}

static TABLES: Tables = tables();

const fn tables() -> Tables {
    let mut tables = Tables { exp: [0; 2 * ORDER], log: [0; 256] };
    let mut power = 1u8;
    let mut i = 0;
    while i < ORDER {
        tables.exp[i] = power;
        tables.exp[i + ORDER] = power;
        tables.log[power as usize] = i as u8;
        power = double(power);
        i += 1;
    }
    tables
}

/// `2 * a`.
pub const fn double(a: u8) -> u8 {
    (a << 1) ^ if a & 0x80 != 0 { (POLYNOMIAL & 0xFF) as u8 } else { 0 }
}

/// `2^i`, for any `i`.
pub fn power(i: usize) -> u8 {
    TABLES.exp[i % ORDER]
}

/// `a * b`.
pub fn mul(a: u8, b: u8) -> u8 {
    if a == 0 || b == 0 {
        return 0;
    }
    TABLES.exp[usize::from(TABLES.log[usize::from(a)]) + usize::from(TABLES.log[usize::from(b)])]
}

/// The number that gives 1 when multiplied with `a`, which must not be zero.
///
/// # Panics
/// When `a` is zero.
pub fn inverse(a: u8) -> u8 {
    assert!(a != 0, "zero has no inverse");
    TABLES.exp[ORDER - usize::from(TABLES.log[usize::from(a)])]
}

/// Multiplication by `c` as a bit matrix in the layout of the `gf2p8affineqb` instruction: byte `7 - i` of the result
/// selects the bits of the operand whose parity is bit `i` of the product.
pub fn affine_matrix(c: u8) -> u64 {
    let mut matrix = 0u64;
    for operand_bit in 0..8 {
        let column = mul(c, 1 << operand_bit);
        for product_bit in 0..8 {
            if column >> product_bit & 1 != 0 {
                matrix |= 1 << (8 * (7 - product_bit) + operand_bit);
            }
        }
    }
    matrix
}

/// The products of `c` with all low and with all high nibbles, for byte-shuffle instructions.
pub fn nibble_tables(c: u8) -> ([u8; 16], [u8; 16]) {
    (std::array::from_fn(|n| mul(c, n as u8)), std::array::from_fn(|n| mul(c, (n as u8) << 4)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Multiplication by the definition: polynomials multiplied bit by bit and reduced.
    fn by_definition(a: u8, b: u8) -> u8 {
        let mut product = 0u16;
        for bit in 0..8 {
            if b >> bit & 1 != 0 {
                product ^= u16::from(a) << bit;
            }
        }
        for bit in (8..16).rev() {
            if product >> bit & 1 != 0 {
                product ^= POLYNOMIAL << (bit - 8);
            }
        }
        product as u8
    }

    #[test]
    fn multiplication_follows_the_definition() {
        for a in 0..=255 {
            for b in 0..=255 {
                assert_eq!(mul(a, b), by_definition(a, b), "{a} * {b}");
            }
        }
    }

    #[test]
    fn two_generates_the_group_and_inverses_invert() {
        let powers: std::collections::BTreeSet<u8> = (0..ORDER).map(power).collect();
        assert_eq!(powers.len(), ORDER);
        assert_eq!(power(ORDER), 1);
        assert_eq!(power(8), 0x1D);
        for a in 1..=255 {
            assert_eq!(mul(a, inverse(a)), 1);
        }
    }

    #[test]
    fn matrices_and_nibble_tables_multiply() {
        for c in 0..=255 {
            let matrix = affine_matrix(c).to_le_bytes();
            let (low, high) = nibble_tables(c);
            for x in 0..=255u8 {
                let mut product = 0;
                for bit in 0..8 {
                    product |= (((matrix[7 - bit] & x).count_ones() & 1) as u8) << bit;
                }
                assert_eq!(product, mul(c, x));
                assert_eq!(low[usize::from(x & 15)] ^ high[usize::from(x >> 4)], mul(c, x));
            }
        }
    }
}
