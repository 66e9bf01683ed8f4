// As much of a document as the Markdown renderer uses, and a way to print it.

class Node {
  parent = null;
  remove() {
    if (this.parent) this.parent.children.splice(this.parent.children.indexOf(this), 1);
    this.parent = null;
  }
}

class Text extends Node {
  constructor(data) {
    super();
    this.data = data;
  }
  appendData(data) {
    this.data += data;
  }
}

const escape = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/"/g, "&quot;");

class Element extends Node {
  children = [];
  attributes = {};
  constructor(ownerDocument, name) {
    super();
    this.ownerDocument = ownerDocument;
    this.name = name;
  }
  append(...nodes) {
    for (const each of nodes) {
      const node = typeof each === "string" ? new Text(each) : each;
      node.remove();
      node.parent = this;
      this.children.push(node);
    }
  }
  setAttribute(name, value) {
    this.attributes[name] = value;
  }
  get html() {
    return this.children
      .map((node) => {
        if (node instanceof Text) return escape(node.data);
        const attributes = Object.entries(node.attributes).map(([name, value]) => ` ${name}="${escape(value)}"`);
        return `<${node.name}${attributes.join("")}>${node.html}</${node.name}>`;
      })
      .join("");
  }
}

export const fakeDocument = {
  baseURI: "http://page.test/",
  createElement: (name) => new Element(fakeDocument, name),
  createTextNode: (data) => new Text(data),
};
