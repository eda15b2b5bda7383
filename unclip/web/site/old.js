// A sentence for browsers that cannot show the page. Plain old JavaScript, which they can run.

(function () {
  function tell() {
    document.documentElement.className = "old";
    document.getElementById("message").textContent =
      "This browser is too old for the page. Firefox 115, Chrome 110, Safari 17 and newer ones can show it.";
  }
  var needed = ["WebAssembly", "DecompressionStream", "OffscreenCanvas", "BigInt", "Promise"];
  for (var i = 0; i < needed.length; i++) if (!window[needed[i]]) tell();
  if (!("noModule" in HTMLScriptElement.prototype)) tell();
  window.addEventListener("error", function (event) {
    if (event.error instanceof SyntaxError) tell();
  });
})();
