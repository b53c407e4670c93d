//! Reading fields of what drives answer: anything may be short, and nothing is believed.

/// One byte.
pub fn byte(data: &[u8], at: usize) -> Option<u8> {
    data.get(at).copied()
}

/// A little-endian number of up to eight bytes.
pub fn little(data: &[u8], at: usize, len: usize) -> Option<u64> {
    let field = data.get(at..at.checked_add(len)?)?;
    Some(field.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// A big-endian number of up to eight bytes; of longer ones the last eight count, and all ones when more would be needed.
pub fn big(data: &[u8], at: usize, len: usize) -> Option<u64> {
    let field = data.get(at..at.checked_add(len)?)?;
    let (head, tail) = field.split_at(len.saturating_sub(8));
    if head.iter().any(|byte| *byte != 0) {
        return Some(u64::MAX);
    }
    Some(tail.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// A little-endian number of 16 bytes; the largest that fits when it does not.
pub fn little_16(data: &[u8], at: usize) -> Option<u64> {
    let (low, high) = (little(data, at, 8)?, little(data, at.checked_add(8)?, 8)?);
    Some(if high == 0 { low } else { u64::MAX })
}

/// Text as drives give it: padded by blanks, and kept to what can be printed. Nothing when it is empty.
pub fn text(data: &[u8]) -> Option<String> {
    let printable = |byte: &u8| if byte.is_ascii_graphic() { *byte as char } else { ' ' };
    let text: String = data.iter().map(printable).collect();
    let words: Vec<&str> = text.split_whitespace().collect();
    (!words.is_empty()).then(|| words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_in_both_orders_and_never_beyond_the_end() {
        let data = [1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        assert_eq!((little(&data, 0, 2), little(&data, 0, 6)), (Some(0x0201), Some(0x0403_0201)));
        assert_eq!((big(&data, 0, 2), big(&data, 8, 9)), (Some(0x0102), Some(1)));
        assert_eq!(big(&data, 0, 9), Some(u64::MAX), "too large for what it is kept in");
        assert_eq!((little_16(&data, 0), little_16(&data, 1)), (Some(0x0403_0201), Some(u64::MAX)));
        assert_eq!((byte(&data, 17), little(&data, 16, 2), big(&data, usize::MAX, 2)), (None, None, None));
    }

    #[test]
    fn text_is_kept_to_what_can_be_printed() {
        assert_eq!(text(b"  WD  Blue\0\0  "), Some("WD Blue".into()));
        assert_eq!(text(b"a\x1b[2J"), Some("a [2J".into()));
        assert_eq!((text(b"   "), text(&[0xff; 8]), text(&[])), (None, None, None));
    }
}
