// Keep the page's files, so that it opens again without a network. They are named by the version in lite.json.

const CACHE = "unclip-1";

self.addEventListener("fetch", (event) => {
  if (event.request.method !== "GET") return;
  event.respondWith(
    fetch(event.request)
      .then(async (response) => {
        if (response.ok) (await caches.open(CACHE)).put(event.request, response.clone());
        return response;
      })
      .catch(async (error) => (await caches.match(event.request, { ignoreSearch: true })) ?? Promise.reject(error)),
  );
});
