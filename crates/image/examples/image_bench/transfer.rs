//! A fixed number of reads or writes of one size, as `qemu-img bench` makes them.

use crate::arguments::Arguments;
use cenote_image::{AlignedBuffer, CacheMode, Image, OpenOptions};
use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// What every request has in common.
#[derive(Clone, Copy)]
struct Requests {
    count: u64,
    depth: usize,
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
        let next = AtomicU64::new(0);
        work(&image, requests, &next)?;
    } else {
        many(&image, requests)?;
    }
    println!("seconds {}", begun.elapsed().as_secs_f64());
    image.close()?;
    Ok(())
}

/// As many threads as requests are to be in flight.
fn many(image: &Image, requests: Requests) -> Result<(), Box<dyn Error>> {
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..requests.depth)
            .map(|_| scope.spawn(|| work(image, requests, &next)))
            .collect();
        for worker in workers {
            worker.join().map_err(|_| "a worker panicked")??;
        }
        Ok(())
    })
}

fn work(image: &Image, requests: Requests, next: &AtomicU64) -> Result<(), cenote_image::Error> {
    let mut buffer = AlignedBuffer::new(requests.size, 4096);
    buffer.fill(165);
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= requests.count {
            return Ok(());
        }
        let offset = requests.offset(number, image.size());
        if requests.write {
            image.write_at(&buffer, offset)?;
        } else {
            image.read_at(&mut buffer, offset)?;
        }
    }
}
