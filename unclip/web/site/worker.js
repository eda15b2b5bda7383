// The service worker: keeps the page itself. Networks are kept by keeping.js.

const CACHE = "unclip-page";

self.addEventListener("install", (event) => {
  const keepPage = async () => {
    const { page } = await (await fetch("site.json")).json();
    await (await caches.open(CACHE)).addAll(["./", ...page]);
    await self.skipWaiting();
  };
  event.waitUntil(keepPage());
});

self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  if (event.request.method !== "GET" || url.origin !== location.origin) return;
  if (url.pathname.endsWith(".json") || url.pathname.endsWith(".gz")) return;
  event.respondWith(newest(event.request));
});

/** From the host; what was kept where it cannot be reached. */
async function newest(request) {
  const cache = await caches.open(CACHE);
  try {
    const response = await fetch(request);
    if (response.ok) await cache.put(withoutQuery(request.url), response.clone());
    return response;
  } catch (error) {
    const found = await cache.match(withoutQuery(request.url));
    if (found) return found;
    throw error;
  }
}

function withoutQuery(url) {
  return url.split(/[?#]/)[0];
}
