// An audio worklet: passes the samples of the microphone on, in blocks of 0.1 s.
"use strict";

class Microphone extends AudioWorkletProcessor {
  constructor() {
    super();
    this.block = new Int16Array(Math.round(sampleRate / 10));
    this.count = 0;
  }

  process([[samples]]) {
    for (const value of samples || []) {
      this.block[this.count++] = Math.round(32767 * Math.max(-1, Math.min(1, value)));
      if (this.count === this.block.length) {
        this.port.postMessage(this.block.slice().buffer);
        this.count = 0;
      }
    }
    return true;
  }
}

registerProcessor("microphone", Microphone);
