//! Finding runs of zeroes in a buffer.

/// Whether every byte is zero. Written so that the compiler makes vector
/// instructions of it: whole blocks are or-ed together before one test.
pub(super) fn is_zero(data: &[u8]) -> bool {
    const BLOCK: usize = 256;
    let mut blocks = data.chunks_exact(BLOCK);
    blocks.all(|block| {
        block.chunks_exact(8).fold(0_u64, |any, word| {
            any | u64::from_ne_bytes(word.try_into().unwrap_or([1; 8]))
        }) == 0
    }) && blocks.remainder().iter().all(|&byte| byte == 0)
}

/// Splits `data`, which lies at `offset` of an image, into maximal runs of
/// all-zero and other granules. A granule is `granularity` bytes, aligned in
/// the image; the first and the last may be cut off by the buffer's ends.
/// Calls `run(offset, bytes, zero)` for each in order.
pub(super) fn for_each_run<E>(
    data: &[u8],
    offset: u64,
    granularity: u64,
    mut run: impl FnMut(u64, &[u8], bool) -> Result<(), E>,
) -> Result<(), E> {
    let granule_at = |position: usize| -> usize {
        let inside = (offset + position as u64) % granularity;
        let room = usize::try_from(granularity - inside).unwrap_or(usize::MAX);
        room.min(data.len() - position)
    };
    let mut start = 0;
    while start < data.len() {
        let mut end = start + granule_at(start);
        let zero = is_zero(&data[start..end]);
        while end < data.len() {
            let next = end + granule_at(end);
            if is_zero(&data[end..next]) != zero {
                break;
            }
            end = next;
        }
        run(offset + start as u64, &data[start..end], zero)?;
        start = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_byte_anywhere_is_seen() {
        for length in [0, 1, 7, 255, 256, 257, 1000] {
            let mut data = vec![0; length];
            assert!(is_zero(&data));
            for at in 0..length {
                data[at] = 1;
                assert!(!is_zero(&data), "byte {at} of {length}");
                data[at] = 0;
            }
        }
    }

    proptest! {
        #[test]
        fn runs_cover_the_buffer_in_order_and_tell_the_truth(
            data in prop::collection::vec(prop::sample::select(vec![0_u8, 0, 0, 1]), 0..200),
            offset in 0_u64..64,
            granularity in prop::sample::select(vec![1_u64, 4, 16]),
        ) {
            let mut position = offset;
            let mut last = None;
            for_each_run::<()>(&data, offset, granularity, |at, bytes, zero| {
                assert_eq!(at, position);
                position += bytes.len() as u64;
                assert_ne!(last, Some(zero), "runs are maximal");
                last = Some(zero);
                let from = (at - offset) as usize;
                assert_eq!(bytes, &data[from..from + bytes.len()]);
                if zero {
                    assert!(bytes.iter().all(|&byte| byte == 0));
                } else {
                    assert!(at == offset || at % granularity == 0);
                }
                Ok(())
            }).unwrap();
            prop_assert_eq!(position, offset + data.len() as u64);
        }
    }
}
