// Files that the browser keeps, so that the page opens at once the next time, and without a network.

const CACHE = "unclip-networks";

/** A file of this content, of which there is one version for ever. */
export async function keptFile(path, sha256) {
  const url = new URL(`${path}?sha256=${sha256}`, import.meta.url);
  const cache = await openCache();
  const found = await cache?.match(url);
  if (found) return found;
  const response = await fetchOrThrow(url);
  keep(cache, url, response.clone());
  return response;
}

/** A file that may have changed: the one that was kept is taken where there is no network. */
export async function freshFile(path) {
  const url = new URL(path, import.meta.url);
  const cache = await openCache();
  try {
    const response = await fetchOrThrow(url, { cache: "no-cache" });
    keep(cache, url, response.clone());
    return response;
  } catch (error) {
    const found = await cache?.match(url);
    if (found) return found;
    throw error;
  }
}

async function fetchOrThrow(url, options) {
  const response = await fetch(url, options);
  if (!response.ok) throw new Error(`${url.pathname}: ${response.status}`);
  return response;
}

/** Where nothing can be kept, as in private windows, the page works without. */
async function openCache() {
  try {
    return await caches.open(CACHE);
  } catch {
    return null;
  }
}

async function keep(cache, url, response) {
  try {
    await cache?.put(url, response);
    for (const { url: other } of (await cache?.keys()) ?? []) // older versions
      if (other !== url.href && new URL(other).pathname === url.pathname) await cache.delete(other);
  } catch {
    // the disk is full
  }
}
