// Browsers refuse web workers to a page that was opened from disk. There a hidden frame takes the worker's place, so
// that the search works without a server. The theme's worker looks for the name IFrameWorker and waits for importScripts.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.appendChild(frame);
      this.inside = frame.contentWindow;
      window.addEventListener("message", (event) => {
        if (event.source !== this.inside) return;
        event.stopImmediatePropagation();
        const copy = new MessageEvent("message", { data: event.data });
        this.dispatchEvent(copy);
        if (this.onmessage) this.onmessage(copy);
      });
      const load = (address) => new Promise((done, failed) => {
        const script = this.inside.document.createElement("script");
        script.src = new URL(address, new URL(url, document.baseURI));
        script.onload = done;
        script.onerror = failed;
        this.inside.document.body.appendChild(script);
      });
      this.inside.document.open();
      this.inside.document.write("<!doctype html><html><body></body></html>");
      this.inside.document.close();
      this.inside.importScripts = (...urls) => urls.reduce((before, u) => before.then(() => load(u)), Promise.resolve());
      // What the worker sends goes to this window, with the frame as its source.
      const send = this.inside.document.createElement("script");
      send.textContent = "postMessage = (data) => parent.postMessage(data, '*');";
      this.inside.document.body.appendChild(send);
      this.ready = load(new URL(url, document.baseURI));
    }

    postMessage(data) {
      this.ready.then(() => this.inside.dispatchEvent(new MessageEvent("message", { data })));
    }

    terminate() {}
  };
  window.Worker = window.IFrameWorker;
}
