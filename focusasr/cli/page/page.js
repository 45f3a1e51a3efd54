// The page of `focusasr serve`: sends a recording, shows its text as it comes, plays it from a word, saves subtitles.
"use strict";

const element = (id) => document.getElementById(id);
const player = element("player");
let words = []; // {start, end, span}, in order
let saved = {}; // format: content
let name = "recording";
let address = null; // of the recording, for the player
let request = null;

function report(text, isError = false) {
  element("status").textContent = text;
  element("status").classList.toggle("error", isError);
}

function clock(seconds) {
  const whole = Math.floor(seconds);
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return parts.map((part) => String(part).padStart(2, "0")).join(":").replace(/^00:/, "");
}

function playFrom(seconds) {
  player.currentTime = seconds;
  player.play();
}

function clickable(tag, text, start) {
  const node = document.createElement(tag);
  node.textContent = text;
  node.addEventListener("click", () => playFrom(start));
  return node;
}

function addSegment(segment) {
  const line = document.createElement("div");
  line.className = "segment";
  line.append(clickable("time", clock(segment.start), segment.start));
  const text = document.createElement("span");
  const timed = segment.words.length ? segment.words : [{ word: segment.text, start: segment.start, end: segment.end }];
  for (const word of timed) {
    const span = clickable("span", word.word, word.start);
    span.className = "word";
    text.append(span, " ");
    words.push({ start: word.start, end: word.end, span });
  }
  line.append(text);
  element("transcript").append(line);
}

function clear(file) {
  request?.abort();
  words = [];
  saved = {};
  name = (file.name || "recording").replace(/\.[^.]*$/, "");
  element("transcript").replaceChildren();
  element("downloads").hidden = true;
  if (address) URL.revokeObjectURL(address);
  address = URL.createObjectURL(file);
  player.src = address;
  player.hidden = false;
}

function headers() {
  const key = element("key").value;
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function transcribe(file) {
  clear(file);
  report("Transcribing …");
  const form = new FormData();
  form.append("response_format", "verbose_json");
  form.append("timestamp_granularities[]", "word");
  form.append("timestamp_granularities[]", "segment");
  form.append("stream", "true");
  const language = element("language").value.trim();
  if (language) form.append("language", language);
  form.append("file", file, file.name || "recording");
  request = new AbortController();
  const options = { method: "POST", body: form, headers: headers(), signal: request.signal };
  try {
    const answer = await fetch("/v1/audio/transcriptions", options);
    if (!answer.ok) throw new Error((await answer.json()).error.message);
    await readEvents(answer.body.getReader());
  } catch (error) {
    if (error.name !== "AbortError") report(error.message, true);
  }
}

async function readEvents(reader) {
  const decoder = new TextDecoder();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    rest += decoder.decode(value || new Uint8Array(), { stream: !done });
    const events = rest.split("\n\n");
    rest = events.pop();
    events.forEach((event) => take(JSON.parse(event.replace(/^data: /, ""))));
    if (done) return;
  }
}

function take(event) {
  if (event.error) throw new Error(event.error.message);
  if (event.type === "transcript.text.delta") addSegment(event.segment);
  if (event.type !== "transcript.text.done") return;
  const { srt, vtt, type, ...rest } = event;
  saved = { txt: `${event.text}\n`, srt, vtt, json: JSON.stringify(rest, null, 2) };
  element("downloads").hidden = false;
  report(event.text ? `${event.duration.toFixed(1)} s, ${event.language}` : "No speech found.");
}

function save(format) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([saved[format]], { type: "text/plain" }));
  link.download = `${name}.${format}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// Shows text while one speaks; without it, the recording is still transcribed at its end.
async function showLive(stream) {
  const line = element("live");
  const context = new AudioContext();
  await context.audioWorklet.addModule("/microphone.js");
  const socket = new WebSocket(`${location.origin.replace(/^[a-z]{4}/, "ws")}/v1/listen`);
  const settings = { rate: context.sampleRate };
  if (element("key").value) settings.api_key = element("key").value;
  if (element("language").value.trim()) settings.language = element("language").value.trim();
  let finals = "";
  socket.onmessage = (event) => {
    const message = JSON.parse(event.data);
    if (message.type === "error") report(message.message, true);
    if (message.type === "final") finals += `${message.text} `;
    if (message.text !== undefined) line.textContent = message.type === "final" ? finals : finals + message.text;
  };
  socket.onopen = () => {
    socket.send(JSON.stringify(settings));
    const microphone = new AudioWorkletNode(context, "microphone");
    microphone.port.onmessage = (event) => socket.readyState === WebSocket.OPEN && socket.send(event.data);
    context.createMediaStreamSource(stream).connect(microphone);
  };
  line.textContent = "";
  line.hidden = false;
  return () => {
    socket.close();
    context.close();
    line.hidden = true;
  };
}

async function record() {
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  } catch (error) {
    report(`The microphone cannot be used: ${error.message}`, true);
    return;
  }
  const recorder = new MediaRecorder(stream);
  const parts = [];
  const live = showLive(stream).catch(() => () => {});
  recorder.addEventListener("dataavailable", (event) => parts.push(event.data));
  recorder.addEventListener("stop", () => {
    live.then((end) => end());
    stream.getTracks().forEach((track) => track.stop());
    toggleRecording(false);
    transcribe(new File(parts, "recording", { type: recorder.mimeType }));
  });
  element("stop").onclick = () => recorder.stop();
  recorder.start();
  toggleRecording(true);
  report("Recording …");
}

function toggleRecording(on) {
  element("record").hidden = on;
  element("stop").hidden = !on;
}

player.addEventListener("timeupdate", () => {
  const now = player.currentTime;
  for (const word of words) word.span.classList.toggle("now", word.start <= now && now < word.end);
});
element("file").addEventListener("change", (event) => event.target.files[0] && transcribe(event.target.files[0]));
element("record").addEventListener("click", record);
element("downloads").addEventListener("click", (event) => event.target.dataset.format && save(event.target.dataset.format));
for (const kind of ["dragover", "dragleave", "drop"]) {
  element("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    element("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files[0]) transcribe(event.dataTransfer.files[0]);
  });
}
fetch("/health").then((answer) => answer.json()).then((health) => { element("model").textContent = health.model; });
