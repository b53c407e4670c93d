use super::*;

fn run(start: usize, end: usize, zero: bool) -> Run {
    Run { start, end, zero }
}

#[test]
fn only_long_runs_of_zeroes_are_cut_out() {
    let mut data = vec![0u8; 4 * HOLE_BYTES_MIN];
    assert_eq!(runs(&data, 0), [run(0, data.len(), true)]);
    data[HOLE_BYTES_MIN] = 1;
    data[HOLE_BYTES_MIN + 3 * GRAIN] = 1;
    let behind = HOLE_BYTES_MIN + 4 * GRAIN;
    let expected = [run(0, HOLE_BYTES_MIN, true), run(HOLE_BYTES_MIN, behind, false), run(behind, data.len(), true)];
    assert_eq!(runs(&data, 0), expected, "two zero blocks between data are not worth a chunk");
    data.fill(1);
    assert_eq!(runs(&data, 7), [run(0, data.len(), false)]);
}

#[test]
fn runs_cover_the_read_and_begin_at_blocks_of_the_device() {
    let len = 3 * HOLE_BYTES_MIN + 1000;
    for offset in [0u64, 1, 4095, 123_456] {
        let mut data = vec![0u8; len];
        let to_block = (GRAIN - offset as usize % GRAIN) % GRAIN;
        data[to_block + HOLE_BYTES_MIN] = 1;
        let runs = runs(&data, offset);
        assert_eq!((runs[0].start, runs[runs.len() - 1].end), (0, len));
        for pair in runs.windows(2) {
            assert_eq!(pair[0].end, pair[1].start);
            assert_ne!(pair[0].zero, pair[1].zero);
            assert_eq!((offset + pair[1].start as u64) % GRAIN as u64, 0);
        }
        for run in runs.iter().filter(|run| run.zero) {
            assert!(is_zero(&data[run.start..run.end]) && run.end - run.start >= HOLE_BYTES_MIN);
        }
        assert!(runs.iter().any(|run| !run.zero));
    }
}

#[test]
fn what_needs_no_memory_costs_nothing() {
    let request = |command, len| Request { flags: 0, command, cookie: 0, offset: 0, len };
    assert_eq!(cost(&request(command::READ, 100), 1), 100);
    assert_eq!(cost(&request(command::WRITE, 100), 1), 100);
    assert_eq!(cost(&request(command::WRITE_ZEROES, u32::MAX), 1), 0);
    assert_eq!(cost(&request(command::TRIM, u32::MAX), 1), 0);
    assert_eq!(cost(&request(command::BLOCK_STATUS, u32::MAX), 2), 2 * EXTENTS_MAX * 8);
}
