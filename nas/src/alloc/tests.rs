use super::*;

#[test]
fn runs_are_found_where_they_are() {
    let mut map = Bitmap::default();
    assert_eq!(map.free_run(0, 10), Some((0, 10)));
    map.set(0, 100);
    map.set(103, 5000);
    assert_eq!(map.count(), 5100);
    assert_eq!(map.free_run(0, 3), Some((100, 3)));
    assert_eq!(map.free_run(0, 4), Some((5103, 4)), "not the short one");
    assert_eq!(map.free_run(101, 4), Some((101, 2)), "what goes on from the goal is better than what is long");
    map.set(5103, GROUP_BLOCKS - 5103);
    assert_eq!(map.free_run(0, 4), Some((100, 3)), "the longest there is");
    map.clear(64, 64);
    assert!(!map.get(64) && map.get(63) && !map.get(127) && map.get(128));
    map.set(0, GROUP_BLOCKS);
    assert_eq!(map.free_run(0, 1), None);
    assert_eq!(Bitmap::decode(&map.encode()).expect("whole").count(), GROUP_BLOCKS);
    assert!(Bitmap::decode(&map.encode()[1..]).is_none());
}
