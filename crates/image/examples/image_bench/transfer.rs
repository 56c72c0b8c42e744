//! A fixed number of reads or writes of one size, as `qemu-img bench` makes them.

use crate::arguments::Arguments;
use cenote_image::{AlignedBuffer, CacheMode, Image, OpenOptions};
use std::error::Error;
use std::time::Instant;

/// What every request has in common.
#[derive(Clone, Copy)]
struct Requests {
    count: u64,
    depth: u32,
    size: usize,
    step: u64,
    write: bool,
}

impl Requests {
    /// The offset of a request; the last ones start again from the front.
    fn offset(&self, number: u64, image_size: u64) -> u64 {
        (number * self.step) % image_size
    }
}

/// Runs the requests and prints the seconds from the first one's start to the last one's end.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let requests = Requests {
        count: arguments.get("-c")?,
        depth: arguments.get("-d")?,
        size: arguments.get("-s")?,
        step: arguments.get("-S")?,
        write: arguments.has("-w"),
    };
    let cache: CacheMode = arguments.get("-t")?;
    let image = OpenOptions::new(arguments.get("-f")?)
        .writable(requests.write)
        .cache(cache)
        .open(arguments.file(0)?)?;
    let begun = Instant::now();
    if requests.depth == 1 {
        one_by_one(&image, requests)?;
    } else {
        queued(&image, requests)?;
    }
    println!("seconds {}", begun.elapsed().as_secs_f64());
    image.close()?;
    Ok(())
}

/// Each request by a call that returns when it is done.
fn one_by_one(image: &Image, requests: Requests) -> Result<(), Box<dyn Error>> {
    let mut buffer = AlignedBuffer::new(requests.size, 4096);
    buffer.fill(165);
    for number in 0..requests.count {
        let offset = requests.offset(number, image.size());
        if requests.write {
            image.write_at(&buffer, offset)?;
        } else {
            image.read_at(&mut buffer, offset)?;
        }
    }
    Ok(())
}

/// As many requests in flight as the depth says, by one thread.
fn queued(image: &Image, requests: Requests) -> Result<(), Box<dyn Error>> {
    let mut queue = image.queue(requests.depth)?;
    let mut spare: Vec<AlignedBuffer> = (0..requests.depth)
        .map(|_| queue.buffer(requests.size))
        .collect();
    for buffer in &mut spare {
        buffer.fill(165);
    }
    let mut next = 0;
    while next < requests.count || queue.in_flight() > 0 {
        while next < requests.count && queue.has_room() {
            let Some(buffer) = spare.pop() else { break };
            let offset = requests.offset(next, image.size());
            if requests.write {
                queue.write(next, buffer, offset)?;
            } else {
                queue.read(next, buffer, offset)?;
            }
            next += 1;
        }
        queue.submit()?;
        for done in queue.wait()? {
            done.result?;
            spare.extend(done.buffer);
        }
    }
    Ok(())
}
